"""What becomes of memory that is freed."""
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3      # of glibc's mallopt(3)
_LARGEST = 32 << 20      # bytes of a block that is taken from what was freed; the most that mallopt takes
_KEPT = 256 << 20        # bytes that are kept


def keep_freed() -> None:
    """Let glibc keep what is freed: it gives the networks' arrays back, to be cleared by the kernel time after time.

    For a process of our own, not for one that uses us as a library. Elsewhere than with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
