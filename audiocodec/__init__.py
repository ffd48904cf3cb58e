"""nac, a learned audio codec: samples to small .nac files and back."""

__version__ = "0.1.0"
__all__ = ["Codec", "decode", "encode"]


def __getattr__(name: str):
    """Give the public names of codec.py, which loads torch, when they are first used."""
    if name in __all__:
        from audiocodec import codec
        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
