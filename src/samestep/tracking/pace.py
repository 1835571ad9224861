"""What the steps between two rows cost: seconds, the wait for data, units a second, memory, model FLOPs utilization."""

from __future__ import annotations

import re
import resource
import sys
import time

import torch

from samestep.control import Watchdog
from samestep.run.metric_rows import Row

# Dense FLOPs a second by NVIDIA's data sheets, at bf16 on tensor cores and at fp32; the first pattern that fits counts.
_PEAKS = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "GH200": (990e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A10G": (70e12, 31.5e12),
    "A10": (125e12, 31.2e12),
    "A30": (165e12, 10.3e12),
    "A40": (150e12, 37.4e12),
    "RTX A6000": (155e12, 38.7e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090$": (165e12, 82.6e12),
    "RTX 3090$": (71e12, 35.6e12),
}


def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """FLOPs a second that a device of this name reaches at most; None where that is not known.

    Nothing is known of a slice of a device, nor in float32 once matrix products may be rounded to TF32.
    """
    found = next((peaks for words, peaks in _PEAKS.items() if re.search(rf"\b{words}\b", device)), None)
    if found is None or " MIG " in device or (dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"):
        return None
    return found[0] if dtype in (torch.bfloat16, torch.float16) else found[1] if dtype == torch.float32 else None


class Pace:
    """Counts what the steps take, without evaluation and saving; the clock is read where a row is written.

    Args:
        unit: of the steps' weights, for the name of the rate.
        watch: knows when a step began, and how long this rank waited for data.
        first_step: of this start, from 0.
    """

    def __init__(self, unit: str, watch: Watchdog, device: torch.device, first_step: int) -> None:
        self._rate_name, self._watch, self._device, self._step = f"{unit}_per_s", watch, device, first_step
        self._began = self._paused_at = self._read_s = 0.0
        self.is_paused = True
        self.step_at_peak_s: float | None = None  # what a step would take if all devices computed as fast as they can

    def pause(self) -> None:
        """What comes now, until the next step begins, is no part of any."""
        self._paused_at, self.is_paused = time.monotonic(), True

    def go_on(self) -> None:
        """The first step since the pause has been taken."""
        self._began += self._watch.step_began - self._paused_at
        self.is_paused = False

    def columns(self, step: int, weight: float) -> Row:
        """Of the steps since the last call, up to `step` (from 1), which came to `weight` units over all ranks."""
        now, read_s = time.monotonic(), self._watch.read_s
        took_s = max(now - self._began, 1e-9)
        step_s = took_s / max(step - self._step, 1)
        row: Row = {"step_s": step_s, "data_wait_s": read_s - self._read_s, self._rate_name: weight / took_s}
        row["peak_memory_bytes"] = _peak_memory_bytes(self._device)
        if self.step_at_peak_s is not None:
            row["mfu"] = self.step_at_peak_s / step_s
        self._step, self._began, self._read_s = step, now, read_s
        return row


def _peak_memory_bytes(device: torch.device) -> int:
    """Of this process so far: the tensors on its GPU, or all its memory where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
