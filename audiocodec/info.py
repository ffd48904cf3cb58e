"""What `nac info` tells about a .nac file or a weights file, as plain dictionaries; needs no torch."""

import os
from pathlib import Path

from audiocodec import container, weights


def describe_file(path: Path) -> dict:
    """Describe a .nac file from its header, tags and trailer, without decoding it.

    Raises FormatError when these are damaged, OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        return describe(container.Reader(file), os.fstat(file.fileno()).st_size, path)


def describe(reader: container.Reader, num_bytes: int, path: Path) -> dict:
    """Describe an open .nac file of so many bytes. Raises FormatError."""
    header, trailer = reader.header, reader.find_trailer()
    seconds = trailer.num_samples / header.sample_rate
    tags: dict[str, list[str]] = {}
    for name, text in reader.tags:
        tags.setdefault(name, []).append(text)
    return {
        "file": str(path),
        "bytes": num_bytes,
        "format_version": header.version,
        "seconds": seconds,
        "kbps": num_bytes * 8 / 1000 / seconds if seconds else None,
        "requested_kbps": header.bandwidth / 1000 if header.bandwidth else None,
        "sample_rate": header.sample_rate,
        "channels": header.channels,
        "num_samples": trailer.num_samples,
        "part_from": header.origin.samples / header.sample_rate if header.origin else None,
        "subtype": header.subtype,
        "codebooks": header.codebooks,
        "codebooks_vary": header.has_depths,
        "level_frames": header.level_frames,
        "entropy_coded": header.entropy_coded,
        "segments": len(trailer.sizes),
        "weights": header.weights_id.hex(),
        "model": released_name(header.weights_id),
        "tags": tags,
    }


def released_name(identity: bytes) -> str | None:
    """Return the name of the released model with this identity, or None."""
    names = (path.stem for path in weights.released() if weights.identity(path) == identity)
    return next(names, None)


def describe_model(name: str) -> dict:
    """Describe a model by name or by its weights' path: identity, size, origin, licence. Raises ModelError."""
    loaded = weights.load(name)
    return {
        "file": str(loaded.path),
        "bytes": loaded.path.stat().st_size,
        "weights": loaded.identity.hex(),
        "sample_rate": loaded.config["codec"].get("sample_rate"),
        "codebooks": loaded.config["codec"].get("num_books"),
        "parameters": sum(tensor.size for tensor in loaded.tensors.values()),
        **loaded.config.get("about", {}),
    }
