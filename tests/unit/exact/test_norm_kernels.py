"""The norm in one pass: its arithmetic by Triton's interpreter, and its kernels compiled for GPUs that nobody has here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton here")


@pytest.mark.timeout(300)
def test_its_arithmetic_by_the_interpreter() -> None:
    """In a process of its own: Triton asks for its interpreter once, when it is imported."""
    tests = str(Path(__file__).with_name("interpreted_norm.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^8 passed in", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_gpus_and_read_a_row_a_number_at_a_time(capability: int) -> None:
    """A vector load would need aligned rows, and then alignment would choose the order of a sum."""
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from samestep.exact import norm_kernels as kernels

    target = GPUTarget("cuda", capability, 32)
    table, counts = {"addresses": "*i64", "tensors": "*i64", "squares": "*fp64"}, {"num_tensors": "i32", "halvings": "i32"}
    constants = {"DTYPE": tl.float32, "BLOCK": kernels._BLOCK}
    rows = ASTSource(kernels._square_rows, {**table, **counts, "DTYPE": "constexpr", "BLOCK": "constexpr"}, constants)
    loads = re.findall(r"ld\.global[\w.]*", compile(rows, target=target, options={"num_warps": 4}).asm["ptx"])
    assert loads
    assert not [load for load in loads if ".v2" in load or ".v4" in load]
    sizes = {"UPPER": kernels._UPPER_HALF, "BINS": kernels._NUM_BINS, "CHUNK": kernels._CHUNK}
    bins = ASTSource(
        kernels._add_to_bins,
        {"squares": "*fp64", "bins": "*fp64", "num_rows": "i32", **dict.fromkeys(sizes, "constexpr")},
        sizes,
    )
    assert "add.f64" in compile(bins, target=target).asm["ptx"]
    compile(
        ASTSource(kernels._add_bins, {"bins": "*fp64", "total": "*fp64", "BINS": "constexpr"}, {"BINS": 2048}), target=target
    )
