"""Tasks on the stand-in for a device: ranks meet over it, and one dies, or holds it, while another waits for it in C."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from chaos_tasks import Slow
from stand_in import MOST_PENDING, Device

from samestep.control import abort as breaking
from samestep.runtime.shared_memory import Channel

DEVICE = Device()
RUBBISH = 0x3F  # finite in any dtype
_fault = {"where": ""}


def _wait(self: Channel, place: int, count: int, other: int) -> None:
    """Of `Channel`: as where a kernel waits for what another rank sends, and the host for the kernel."""
    half, own = count % 2, (count % 2 * len(self._others) + count % 2 + self._rank) * 8

    def leave_rubbish() -> None:
        self._rows[half][other] = RUBBISH
        self._marks[place + 1] = self._marks[own + 1]

    DEVICE.collective(lambda: self._marks[place] == count, leave_rubbish)
    if _fault["where"] == "launch":
        for _ in range(MOST_PENDING + 8):
            DEVICE.launch(lambda: None)
    DEVICE.record().synchronize()


Channel._wait = _wait  # type: ignore[method-assign]
breaking.end_device_waits = DEVICE.abort


class OnDevice(Slow):
    """Rank 1 does `fault` at a micro-batch, once; rank 0 waits for the device `where` it is said."""

    fault: str = "die"
    where: str = "meeting"
    mark: str
    calls_before: int

    _calls: int = -1  # a start tries an evaluation first

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self._calls += 1
        rank = os.environ.get("RANK", "0")
        if self._calls == self.calls_before and not Path(f"{self.mark}-{rank}").exists():
            Path(f"{self.mark}-{rank}").touch()
            _fault["where"] = self.where
            if rank == "1" and self.fault == "die":
                time.sleep(0.5)  # the other waits by now
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == "0" and self.where == "kernel":
                DEVICE.kernel(lambda: False)
                DEVICE.record().synchronize()
        return super().loss(model, batch)
