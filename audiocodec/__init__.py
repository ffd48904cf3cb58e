"""nac, a learned audio codec: samples to small .nac files and back."""

__version__ = "0.1.0"
__all__ = ["Codec", "StreamDecoder", "StreamEncoder", "decode", "encode", "open"]


def __getattr__(name: str):
    """Give the public names of modules that load torch when they are first used."""
    if name == "open":
        from audiocodec.nacfile import NacFile
        return NacFile
    if name in __all__:
        from audiocodec import codec, streaming
        return getattr(streaming if name.startswith("Stream") else codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
