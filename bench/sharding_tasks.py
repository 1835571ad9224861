"""A model of wide blocks, and a note from each rank of the most memory that it had."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

import datasets
import torch
from torch import nn

from samestep import Task


def memory_mb(what: str) -> float:
    """Of this process, in MB, by its name in proc(5): VmRSS and VmSize now, VmHWM and VmPeak at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024 / 1e6


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.gelu(self.up(x)))
        return x + y


class Tower(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.out(x)
        return found


class Large(Task):
    width: int = 512
    layers: int = 24
    rows: int = 64

    def model(self) -> nn.Module:
        if "BENCH_MEMORY" in os.environ:
            before = {what: memory_mb(what) for what in ("VmRSS", "VmSize")}

            def note() -> None:
                path = Path(os.environ["BENCH_MEMORY"]) / f"rank-{os.environ.get('RANK', '0')}"
                resident, virtual = memory_mb("VmHWM") - before["VmRSS"], memory_mb("VmPeak") - before["VmSize"]
                path.write_text(f"{resident} {virtual} {before['VmSize']}")

            atexit.register(note)
        return Tower(self.width, self.layers)

    def data(self, split: str) -> datasets.Dataset | None:
        if split != "train":
            return None
        x = torch.randn(self.rows, self.width, generator=torch.Generator().manual_seed(0))
        return datasets.Dataset.from_dict({"x": x.tolist(), "y": x.sum(1).tolist()}).with_format("torch")

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        return ((model(batch["x"]).squeeze(1) - batch["y"]) ** 2).sum(), len(batch["x"])
