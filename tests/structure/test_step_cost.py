"""What a step costs, in counts: operators of torch, calls of samestep's own Python, messages, and waits for a device.

Whoever makes a step dearer raises a limit here on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

HERE = Path(__file__).parent
# forward, loss and backward of a line through ten columns, Adam's fused kernel and its count of steps
BARE = 22


def cost(*words: str, processes: int = 1) -> dict[str, dict[str, float]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(HERE / "step_cost.py"), str(ROOT / "configs" / "seed.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def total(counts: dict[str, float]) -> float:
    return sum(counts.values())


@pytest.mark.timeout(300)
def test_a_step_of_one_micro_batch_does_little_besides_its_own_mathematics() -> None:
    found = cost()
    assert total(found["operators"]) <= BARE + 10, found[
        "operators"
    ]  # two columns and two numbers read, the norm, the division
    assert total(found["calls"]) <= 109, found["calls"]


@pytest.mark.timeout(300)
def test_what_each_further_micro_batch_adds() -> None:
    one, four = cost(), cost("micro_batch_size=8")
    added = total(four["operators"]) - total(one["operators"])
    assert added <= 3 * 26 + 6, four["operators"]  # its own mathematics, its columns, and a sum of gradients
    assert round(total(four["calls"]) - total(one["calls"]), 3) <= 3 * 51, four["calls"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("micro_batches", [2, 8])
@pytest.mark.parametrize("where", [[], ["--far"]], ids=["on one machine", "on two"])
def test_a_step_of_two_processes_sends_one_message(micro_batches: int, where: list[str]) -> None:
    """However many micro-batches it has: eleven gradients, and for each micro-batch a loss and a weight in float64."""
    found = cost(f"micro_batch_size={32 // micro_batches}", *where, processes=2)
    assert total(found["messages"]) == 1, found["messages"]
    assert ("near" in found["messages"]) == (not where)
    gradients, numbers = 4 * 11, 16 * micro_batches // 2
    assert total(found["sent"]) <= gradients + numbers + 8, found["sent"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [[], ["micro_batch_size=8"], ["clip=1.0"]], ids=["plain", "accumulating", "clipping"])
def test_no_step_waits_for_a_device(words: list[str]) -> None:
    found = cost("--as-on-a-gpu", *words)["operators"]
    waits = {"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default", "aten.equal.default"}
    assert not waits & found.keys(), found
