"""The verdict of bench/gpu.sh, on timings that are made up."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
from verdict import SUSPECTS, Figure, verdicts

# A step of 40 ms, 30 of them in kernels; compiled 30 and 24.
QUIET = {name: Figure(40.0, 30.0) for name in ("plain", "flash", "flash, deterministic", "samestep")}
QUIET |= {
    name: Figure(30.0, 24.0)
    for name in (
        "blocks, deterministic", "blocks, no mix-order", "blocks, flash, ATen's switch", "blocks, reduce-overhead", "whole",
        "whole, deterministic", "samestep, compiled",
    )
}  # fmt: skip
QUIET |= {name: Figure(0.6, 0.5) for name in ("attention: flash, deterministic", "attention: split 11 and 5")}
QUIET |= {
    name: Figure(0.2, 0.1) for name in ("norm: by halves", "norm: in one pass", "step: divided before", "step: divided within")
}


def confirmed(figures: dict[str, Figure]) -> dict[str, Any]:
    return {str(row["suspect"]): row["ms"] for row in verdicts(figures) if row["verdict"] == "confirmed"}


def test_where_nothing_differs_nothing_is_confirmed() -> None:
    assert not confirmed(QUIET)
    assert [row["verdict"] for row in verdicts(QUIET)] == ["not confirmed"] * len(SUSPECTS)


@pytest.mark.parametrize(
    ("name", "figure", "suspect", "ms"),
    [
        ("blocks, no mix-order", Figure(20.0, 14.0), "compiled: mix-order reductions", 10.0),
        ("blocks, flash, ATen's switch", Figure(28.0, 22.0), "compiled: no tuning of reductions", 2.0),
        ("whole, deterministic", Figure(25.0, 24.0), "compiled: Python around blocks", 5.0),
        ("blocks, reduce-overhead", Figure(26.0, 24.0), "compiled: launches, which CUDA graphs spare", 4.0),
        ("whole", Figure(24.0, 18.0), "compiled: what a whole model loses by order", 6.0),
        ("plain", Figure(38.0, 28.0), "attention: flash in cuDNN's place", 2.0),
        ("attention: split 11 and 5", Figure(0.5, 0.4), "attention: waves that are not full", 1.2),
        ("norm: by halves", Figure(1.5, 1.2), "the norm by halves", 1.1),
        ("step: divided before", Figure(0.8, 0.6), "a division of its own", 0.5),
        ("samestep", Figure(44.0, 0.0), "samestep beside those kernels", 4.0),
        ("samestep, compiled", Figure(53.4, 0.0), "samestep beside those kernels, compiled", 23.4),
    ],
)
def test_a_difference_confirms_its_own_suspect_and_says_how_much(name: str, figure: Figure, suspect: str, ms: float) -> None:
    assert confirmed({**QUIET, name: figure}) == {suspect: ms}


def test_attentions_fixed_order_is_told_from_the_kernel_that_has_it() -> None:
    slower = {**QUIET, "flash, deterministic": Figure(43.0, 33.0), "samestep": Figure(43.0, 0.0)}
    assert confirmed(slower) == {"attention: flash in a fixed order": 3.0}


def test_less_than_a_hundredth_of_a_step_confirms_nothing_and_what_is_missing_is_named() -> None:
    assert not confirmed({**QUIET, "norm: by halves": Figure(0.6, 0.45)})
    figures = {name: figure for name, figure in QUIET.items() if name != "whole"}
    (row,) = [row for row in verdicts(figures) if row["verdict"] == "not measured"]
    assert row == {"suspect": "compiled: what a whole model loses by order", "verdict": "not measured", "missing": ["whole"]}
