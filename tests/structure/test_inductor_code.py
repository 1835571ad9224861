"""What a compiled block launches on a GPU: the Triton code that inductor writes for it, read by bench/inductor_code.py."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from conftest import ROOT

pytest.importorskip("triton", reason="no Triton here, for which inductor would write")


def read(*ways: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "bench" / "inductor_code.py"), *ways]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the parts of inductor that are called are torch 2.13's")
def test_an_exact_block_launches_what_any_compiled_block_does() -> None:
    comes, exact = read("as it comes", "exact")
    for direction, triton, products in [("forward", 12, 4), ("backward", 18, 8)]:
        found = exact[direction]
        assert found["triton"] <= triton
        assert found["products"] == products
        assert found["atomics"] == 0
        assert all("flash_attention" in other for other in found["others"]), found["others"]
        assert all(len(configurations) == 1 for configurations in found["reductions"].values()), found["reductions"]
        assert comes[direction] == found
