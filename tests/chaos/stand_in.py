"""A device for tests on a machine without one: a CPU process that waits for it as it would wait for CUDA and NCCL.

| what it does | as |
|---|---|
| a launch returns at once, and blocks once 1,024 are pending | CUDA programming guide, asynchronous execution |
| work runs in the order of its launch | CUDA programming guide, streams |
| a host waits in C: no handler of Python runs, other threads do | docs of `signal`; torch/csrc/cuda/Event.cpp frees the GIL |
| an event is asked without a wait | CUDA runtime API, `cudaEventQuery` |
| a collective whose peer is gone never ends | NCCL user guide, fault tolerance: the application calls `ncclCommAbort` |
| an abort leaves anything in the buffers | ProcessGroupNCCL.cpp: later work "might run on corrupted/incomplete data" |
| a kernel runs on after an abort | the same guide: an abort is of communicators alone |
| after an error every later call raises it | CUDA runtime API: errors of a context are sticky |
"""

from __future__ import annotations

import collections
import ctypes
import threading
import time
from collections.abc import Callable

MOST_PENDING = 1024
_POLL_S = 0.001
_C = ctypes.CDLL(None)  # its calls free the GIL


class Latch:
    """Shut until somebody opens it; whoever waits does so in C, in a call that no signal ends."""

    def __init__(self) -> None:
        self._mutex = ctypes.create_string_buffer(128)
        _C.pthread_mutex_init(self._mutex, None)
        _C.pthread_mutex_lock(self._mutex)

    def open(self) -> None:
        _C.pthread_mutex_unlock(self._mutex)

    def wait(self) -> None:
        _C.pthread_mutex_lock(self._mutex)
        _C.pthread_mutex_unlock(self._mutex)


class Event:
    """A place in the queue."""

    def __init__(self, device: Device) -> None:
        self._device, self._latch, self._is_reached = device, Latch(), False

    def reach(self) -> None:
        self._is_reached = True
        self._latch.open()

    def query(self) -> bool:
        self._device.raise_sticky()
        return self._is_reached

    def synchronize(self) -> None:
        self._device.raise_sticky()
        self._latch.wait()
        self._device.raise_sticky()


class Device:
    """One queue, which a thread works off."""

    def __init__(self) -> None:
        self._pending: collections.deque[Callable[[], None]] = collections.deque()
        self._changed = threading.Condition()
        self._full: Latch | None = None
        self._error: BaseException | None = None
        self.is_aborted = False
        threading.Thread(target=self._run, name="the stand-in's queue", daemon=True).start()

    def launch(self, work: Callable[[], None]) -> None:
        self.raise_sticky()
        while True:
            with self._changed:
                if len(self._pending) < MOST_PENDING:
                    self._pending.append(work)
                    self._changed.notify()
                    return
                full = self._full = self._full or Latch()
            full.wait()

    def record(self) -> Event:
        event = Event(self)
        self.launch(event.reach)
        return event

    def collective(self, has_arrived: Callable[[], bool], leave_rubbish: Callable[[], None]) -> None:
        """Launch one that ends when all is there, or by an abort, and then leaves anything."""

        def work() -> None:
            while not has_arrived():
                if self.is_aborted:
                    leave_rubbish()
                    return
                time.sleep(_POLL_S)

        self.launch(work)

    def kernel(self, until: Callable[[], bool]) -> None:
        """Launch one that runs on and on."""

        def work() -> None:
            while not until():
                time.sleep(_POLL_S)

        self.launch(work)

    def abort(self) -> None:
        """End the collectives. It is called from another thread than the one that waits for them."""
        self.is_aborted = True

    def raise_sticky(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"CUDA error: {self._error}")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                work = self._pending[0]
            if self._error is None or isinstance(getattr(work, "__self__", None), Event):  # who waits hears of it
                try:
                    work()
                except Exception as error:
                    self._error = error
            with self._changed:
                self._pending.popleft()
                full, self._full = self._full, None
            if full is not None:
                full.open()
