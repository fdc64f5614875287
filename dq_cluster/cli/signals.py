"""How SIGINT and SIGTERM end a command: at any moment, with one line, and within a bound.

The first signal is raised in the main thread as `Interrupted`, so that everything is closed. The
main thread may hang in native code, and then sees no signal; so a second thread receives every
signal too. It ends the process on a second signal, or when closing takes longer than `GRACE_S`.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE_S = 30.0
# One Ctrl-C can arrive twice: from the terminal and from the program that started this one.
_ONE_KEYSTROKE_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The command was asked to end."""


def run_until_signal(work: Callable[[], int]) -> int:
    """The exit status of `work`, or 128 plus the number of the signal that ended it.

    For the main thread of a process that ends afterwards: the handlers stay. A `work` that
    returns 0 although a signal came has done what it had to, and its status counts.
    """
    ending = _Ending()
    try:
        status = work()
    except KeyboardInterrupt:
        status = 1
    ending.finished = True
    if ending.number:
        ending.said.wait(1)
    return 128 + ending.number if status and ending.number else status


class _Ending:
    """The process's handlers of both signals."""

    def __init__(self) -> None:
        self.number = 0
        self.finished = False  # only the interpreter's own end is left, which nobody waits for
        self.said = threading.Event()
        self._speaker = threading.Lock()  # taken by the one that says the line, and kept
        self._raised = False
        self._pipe, pipe = os.pipe()
        os.set_blocking(pipe, False)
        signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._raise)
        threading.Thread(target=self._listen, daemon=True, name="signals").start()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self._say(number)
        if not self._raised and not self.finished:
            self._raised = True
            raise Interrupted

    def _listen(self) -> None:
        first = 0.0
        while True:
            for number in os.read(self._pipe, 64):
                if number not in _SIGNALS:
                    continue
                if self.finished:
                    _end_now(number)
                elif not first:
                    first = time.monotonic()
                    self._say(number)
                    timer = threading.Timer(GRACE_S, _end_now, [number])
                    timer.daemon = True
                    timer.start()
                elif time.monotonic() - first > _ONE_KEYSTROKE_S:
                    _end_now(number)

    def _say(self, number: int) -> None:
        if self.finished or not self._speaker.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            os.write(2, f"{name}: stopping; once more ends at once\n".encode())
        self.said.set()


def _end_now(number: int) -> None:
    """End this process and all that it started, without asking any of them."""
    if "ray" in sys.modules:
        import psutil  # type: ignore[import-untyped]  # Ray brings it along

        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(128 + number)
