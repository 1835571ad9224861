"""The seed example trains as a plain PyTorch loop over the same rows does."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import torch

from conftest import ROOT, Workplace
from samestep.randomness.mixing import mix
from samestep.randomness.order import permute
from samestep.tasks.regression import Regression


def plain_losses() -> list[float]:
    """The loop that a beginner writes; only the order of the rows and the first weights are taken from the run."""
    data = Regression().data("train")
    assert data is not None
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    torch.manual_seed(mix(0))
    model = torch.nn.Linear(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for epoch in range(10):
        running = 0.0
        rows = torch.from_numpy(permute(np.arange(100), 100, 0, epoch))
        for batch in rows.split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            running += loss.item() * len(batch)
        losses.append(running / 100)
    return losses


def test_the_ten_epoch_lines_equal_a_plain_loop(workplace: Workplace) -> None:
    debug = workplace.command("bash", str(ROOT / "launch/debug.sh"), str(ROOT / "configs/seed.yaml"), "track.wandb=off")
    assert debug.code == 0, debug.err
    found = re.findall(r"^Epoch \[(\d+)/10\], Loss: ([\d.]+)$", debug.out, re.MULTILINE)
    assert [int(epoch) for epoch, _ in found] == list(range(1, 11))
    for (_, loss), plain in zip(found, plain_losses(), strict=True):
        assert abs(float(loss) - plain) < 1e-6


def test_breakpoint_works_under_debug_sh(workplace: Workplace) -> None:
    workplace.write(
        "stops.py",
        "from samestep.tasks.regression import Regression\n"
        "class Stops(Regression):\n"
        "    def loss(self, model, batch):\n"
        "        breakpoint()\n"
        "        return super().loss(model, batch)\n",
    )
    words = ["bash", str(ROOT / "launch/debug.sh"), str(ROOT / "configs/seed.yaml"), "task=stops.py:Stops", "epochs=1"]
    done = subprocess.run(
        words,
        cwd=workplace.path,
        env=workplace.env,
        input="p batch['x'].shape\n" + "c\n" * 4,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "torch.Size([32, 10])" in done.stdout
    assert done.returncode == 0, done.stderr
