"""What a GPU would launch for a step, beside a plain loop: operators without views, counted on a CPU by bench/operators.py.

Limits are what is launched beyond the plain loop's; whoever makes a step dearer raises one here on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import ROOT

pytest.importorskip("triton", reason="no Triton here, whose kernels take the norm on a GPU")


def beyond(name: str, *words: str) -> float:
    command = [sys.executable, str(ROOT / "bench" / "operators.py"), name, "--as-on-a-gpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    waits = {"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default", "aten.equal.default"}
    assert not waits & found["of"].keys(), found["of"]
    extra: float = found["samestep"] - found["plain"]
    return extra


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "limit"), [("gpt", 17), ("batchnorms", 28), ("layernorms", 14), ("droppath", 19), ("masked", 19)]
)
def test_what_a_step_of_one_micro_batch_launches_beyond_the_plain_loop(name: str, limit: float) -> None:
    assert beyond(name) <= limit


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gpt", "batchnorms", "layernorms", "droppath", "masked"])
def test_a_step_of_four_micro_batches_launches_less_than_the_plain_loop(name: str) -> None:
    assert beyond(name, "micro_batch_size=1") < 0
