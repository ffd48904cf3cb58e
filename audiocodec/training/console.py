"""What whoever started a training sees of it: the form of its progress bar, and a Ctrl-C that waits for the update."""
import signal
import sys
import threading
import time

BAR = "{desc}: {percentage:3.0f}% |{bar}| {remaining} left{postfix}"
NOT_FINITE = "--resume goes on from the last good checkpoint; if it comes again, try half the learning rate"
_SAME_SECONDS = 1.0


class Interrupt:
    """Puts Ctrl-C and SIGTERM off until an update is done and saved; a second one, a second later, does not wait.

    Sooner it may be the same: under torchrun a terminal's Ctrl-C comes from the terminal and from torchrun.
    """

    def __init__(self):
        self.wanted = 0              # the number of the signal that came ...
        self._since = 0.0            # ... and when

    def __enter__(self) -> "Interrupt":
        is_main = threading.current_thread() is threading.main_thread()
        self._usual = {number: signal.signal(number, self._note)
                       for number in (signal.SIGINT, signal.SIGTERM) if is_main}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.wanted and time.monotonic() - self._since > _SAME_SECONDS:
            self.obey()
        if not self.wanted:
            self.wanted, self._since = number, time.monotonic()

    def obey(self) -> None:
        """End the program as the signal would have."""
        if self.wanted == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
