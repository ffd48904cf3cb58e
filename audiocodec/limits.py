"""What the commands and the codec both have to know of its range; standard library only, so that help is quick."""

DEFAULT_KBPS = 6.0
MIN_KBPS, MAX_KBPS = 0.75, 48.0      # from one book of one channel to every book of two
MAX_BOOKS = 32                       # of one channel
MAX_LEVEL_BANDS = 32
