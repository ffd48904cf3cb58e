"""The errors nac raises on purpose. Each message is one line that says what was found and what was expected."""


class NacError(Exception):
    """Something a user can put right; the command line prints it as one line and exits with status 1."""


class AudioError(NacError):
    """An audio file or array that nac cannot read, or cannot write."""


class FormatError(NacError):
    """Bytes that are not a sound .nac file."""


class ModelError(NacError):
    """Weights that cannot be found or loaded, or are not the ones a file was made with."""
