"""A shell that starts the tests in the background lets them ignore Ctrl-C, and so would all that they start."""
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
