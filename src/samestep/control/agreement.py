"""What the ranks agree on besides numbers: when to stop, and decisions that one rank makes for all.

What they say travels as JSON: a peer's words can be wrong, and run nothing here, as a pickle could.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from samestep.control.abort import unhurried
from samestep.errors import SamestepError, Stopped, TrainingError, UsageError

T = TypeVar("T")
_TOLD_EVERY_S = 60.0


class StopFlag:
    """Signals set a flag and do nothing else; the flag travels with the step and all ranks act on it together.

    A thread may hear of them too: Python's handlers wait until the main thread is back from C, and it may wait for a device.

    The second Ctrl-C stops at once. SIGHUP, a terminal that closes, stops the run too, unless nohup has it ignored. All that
    holds until the process ends: a launcher that is ending its ranks must not silence one that has yet to say why.

    Args:
        ends_at: when the job's time is over, in Unix seconds.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self, ends_at: float | None = None) -> None:
        self.signal: int = 0
        self.noticed_at: float | None = None  # on the monotonic clock, a signal after which whoever sent it kills
        self._handled: int = 0
        # Time left is read once and counted on the monotonic clock: the other one may be set meanwhile.
        self._ends_at = None if ends_at is None else time.monotonic() + ends_at - time.time()

    def asked(self, needed_s: Callable[[], float]) -> int:
        """The signal that asks for a stop; the clock counts as one when no more than `needed_s()` seconds are left."""
        if not self.signal and self._ends_at is not None and self._ends_at - time.monotonic() <= needed_s():
            return signal.SIGALRM
        return self.signal

    def install(self) -> None:
        for number in self.SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, self._on_signal)

    def listen(self) -> None:
        """Have a thread hear of signals too. Not before whatever is to be forked off this process has been."""
        if self.signal:
            self._notice(self.signal)
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a loader's signals are its own
        threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True).start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._handled == signal.SIGINT:
            raise KeyboardInterrupt
        self._handled = self.signal = number

    def _listen(self, heard: int) -> None:
        while True:
            for number in os.read(heard, 64):
                if number in self.SIGNALS:
                    self._notice(number)

    def _notice(self, number: int) -> None:
        self.signal = self.signal or number
        if number != signal.SIGUSR1 and self.noticed_at is None:
            self.noticed_at = time.monotonic()


def decided_by_main(decide: Callable[[], T]) -> T:
    """What rank 0's `decide` returns, on every rank, as JSON has it; an error of its is raised on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return decide()
    answer: Any = None
    if dist.get_rank() == 0:
        try:
            answer = {"decided": decide()}
        except UsageError as error:
            answer = {"lines": error.lines}
        except Stopped as error:
            answer = {"stopped": str(error)}
        except SamestepError as error:
            answer = {"failed": str(error)}
    text = _bytes(answer)
    size = torch.tensor([len(text)], device=text.device)
    dist.broadcast(size, 0)
    text = text if dist.get_rank() == 0 else text.new_empty(int(size))
    dist.broadcast(text, 0)
    answer = _said(text)
    if "lines" in answer:
        raise UsageError(*answer["lines"])
    if "stopped" in answer:
        raise Stopped(answer["stopped"])
    if "failed" in answer:
        raise TrainingError(answer["failed"])
    return answer["decided"]  # type: ignore[no-any-return]


def everyones(mine: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What every rank passes, in rank order, on every rank, as JSON has it."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [mine]
    text = _bytes(mine, group)
    size = torch.tensor([len(text)], device=text.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group)
    most = int(max(sizes))
    texts = [text.new_empty(most) for _ in sizes]
    dist.all_gather(texts, torch.cat([text, text.new_zeros(most - len(text))]), group)
    return [_said(other[: int(length)]) for other, length in zip(texts, sizes, strict=True)]


def _bytes(words: Any, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """As bytes, on the device over which the group talks."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    return torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8).to(device)


def _said(text: torch.Tensor) -> Any:
    return json.loads(bytes(text.tolist()))


def agreed(attempt: Callable[[], T]) -> T:
    """Run `attempt` on every rank; if it is refused on any, every rank raises the first rank's refusal."""
    result, refusal = None, None
    try:
        result = attempt()
    except UsageError as error:
        refusal = error.lines
    refusal = next((lines for lines in everyones(refusal) if lines is not None), None)
    if refusal is not None:
        raise UsageError(*refusal)
    return result  # type: ignore[return-value]


def first_on_each_machine(local_rank: int, prepare: Callable[[], T], doing: str) -> T:
    """Run `prepare` in one process of each machine, then in the others, which find what it left on disk.

    It may take hours: who waits for it waits on, and reads each minute on standard error what it is that is being done.

    Args:
        doing: `data("train") runs`, say.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return prepare()
    with unhurried():
        first = agreed((lambda: _told(prepare, doing)) if local_rank == 0 else lambda: None)
        then = agreed(prepare if local_rank != 0 else lambda: None)
    return first if local_rank == 0 else then  # type: ignore[return-value]


def _told(work: Callable[[], T], doing: str) -> T:
    """Do it, with a line for each minute that it takes."""
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(_TOLD_EVERY_S):
            minutes = (time.monotonic() - began) / 60
            print(
                f"{socket.gethostname()}: {doing}, for {minutes:.0f} min now; the other ranks wait", file=sys.stderr, flush=True
            )

    threading.Thread(target=tell, name="telling", daemon=True).start()
    try:
        return work()
    finally:
        done.set()


def leave_together() -> None:
    """End the process group once every rank is here: one that leaves early makes its peers fail at exit.

    By now the work is on disk, and a peer that has died meanwhile takes nothing from it.
    """
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
        dist.destroy_process_group()
