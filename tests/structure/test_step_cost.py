"""What a step costs, in counts: operators of torch, and calls of samestep's own Python. A new one is put here on purpose."""

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


def cost(*words: str) -> tuple[float, float, dict[str, dict[str, float]]]:
    command = [sys.executable, str(HERE / "step_cost.py"), str(ROOT / "configs" / "seed.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    return sum(found["operators"].values()), sum(found["calls"].values()), found


@pytest.mark.timeout(300)
def test_a_step_of_one_micro_batch_does_little_besides_its_own_mathematics() -> None:
    operators, calls, found = cost()
    assert operators <= BARE + 10, found["operators"]  # two columns read, two numbers read, the norm and the division
    assert calls <= 95, found["calls"]


@pytest.mark.timeout(300)
def test_what_each_further_micro_batch_adds() -> None:
    (one, calls_of_one, _), (four, calls_of_four, found) = cost(), cost("micro_batch_size=8")
    assert four - one <= 3 * 26 + 6, found["operators"]  # its own mathematics, its columns, and a sum of gradients
    assert calls_of_four - calls_of_one <= 3 * 50, found["calls"]
