"""Decoding that survives images which crash their decoder or keep it busy forever.

Decoders are C libraries, and an image may trigger a bug in one. `watched` decodes at no cost in
this process, which such an image ends. A `ChildDecoder` decodes in a child process, and knows
which image ended it. A `ChildDecoderPool` does so for the images of callers.
"""

import contextlib
import faulthandler
import multiprocessing
import queue
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from types import TracebackType

import numpy as np

from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.framing import Framing
from dq_cluster.images.rejects import Reason, RejectError

# (data, frame) to pixels (size, size, 3) uint8, or RejectError; see decode_image.
Decode = Callable[[bytes, int | Framing], np.ndarray]

# Setting the timer takes a fifth of the time of decoding a thumbnail, so not for every image.
_WATCH_EVERY = 1.0  # seconds
_STDERR = 2
# A child may be killed for another reason, such as a lack of memory, but hardly twice.
_TRIES = 2


@contextlib.contextmanager
def watched(limits: ImageLimits) -> Iterator[Decode]:
    """`decode_image` in this process, which ends when an image takes longer than allowed.

    That is `limits.max_seconds`, and up to a second more. The stack goes to standard error.
    """
    due = 0.0

    def decode(data: bytes, frame: int | Framing) -> np.ndarray:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _WATCH_EVERY
            _watch(limits.max_seconds + _WATCH_EVERY)
        return decode_image(data, frame, limits)

    try:
        yield decode
    finally:
        faulthandler.cancel_dump_traceback_later()


class ChildDecoder:
    """`decode_image` in a child process; an image that ends it is rejected. Use as a context.

    The child ends itself when an image takes `limits.max_seconds`, and when this process is gone.
    Raises MemoryError where none can be started.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._child: ForkServerProcess | None = None
        self._pipe: Connection

    def __enter__(self) -> Decode:
        return self._decode

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end()

    def _decode(self, data: bytes, frame: int | Framing) -> np.ndarray:
        for _ in range(_TRIES):
            if self._child is None:
                self._start()
            try:
                self._pipe.send((data, frame))
                answer = self._pipe.recv()
            except (EOFError, OSError):
                self._end()
                continue
            if isinstance(answer, RejectError):
                raise answer
            return answer
        raise RejectError(Reason.CRASHED_DECODER)

    def _start(self) -> None:
        # A fork of this process, with its threads, might hang; one of a server that has only
        # imported this module is safe, and quick.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, self._limits), daemon=True)
        try:
            child.start()
            self._child = child
            theirs.close()
            self._pipe.recv()  # from here on, what ends it is an image
        except (EOFError, OSError) as error:
            raise MemoryError("the process to decode images in did not start") from error

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None


class ChildDecoderPool:
    """`ChildDecoder` for callers in several threads: each call has one of `children` for itself.

    They start when they are first needed, and end with the pool.
    """

    def __init__(self, limits: ImageLimits, children: int) -> None:
        self._free: queue.SimpleQueue[Decode] = queue.SimpleQueue()
        stack = contextlib.ExitStack()
        for _ in range(children):
            self._free.put(stack.enter_context(ChildDecoder(limits)))
        weakref.finalize(self, stack.close)

    def __call__(self, data: bytes, frame: int | Framing) -> np.ndarray:
        """Pixels (size, size, 3) uint8 of an encoded image. Raises RejectError."""
        decode = self._free.get()
        try:
            return decode(data, frame)
        finally:
            self._free.put(decode)


def _serve(pipe: Connection, limits: ImageLimits) -> None:
    """Answer images with pixels or their rejection until the parent is gone."""
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            data, frame = pipe.recv()
            _watch(limits.max_seconds)
            try:
                answer: np.ndarray | RejectError = decode_image(data, frame, limits)
            except RejectError as error:
                answer = error
            faulthandler.cancel_dump_traceback_later()
            pipe.send(answer)


def _watch(seconds: float) -> None:
    """End this process in `seconds` unless the timer is set again or cancelled before."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
