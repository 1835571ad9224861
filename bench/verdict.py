"""What an ablation's figures say of each suspect: confirmed or not, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_MATTERS = 0.01  # of a step: less than that confirms nothing


@dataclass(frozen=True)
class Figure:
    """One thing that was timed, in milliseconds: by the clock, and what its kernels took in all."""

    wall: float
    kernels: float

    @property
    def outside(self) -> float:
        """By the clock and not in kernels: Python, launches and waits."""
        return max(0.0, self.wall - self.kernels)


Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Suspect:
    """A reason for lost time.

    Args:
        costs: milliseconds a step, of the figures named in `of`.
        step: the figure that the cost is a part of.
    """

    name: str
    of: tuple[str, ...]
    costs: Callable[..., float]
    step: str


def _kernels(slower: Figure, quicker: Figure) -> float:
    return slower.kernels - quicker.kernels


def _wall(slower: Figure, quicker: Figure) -> float:
    return slower.wall - quicker.wall


def _outside(slower: Figure, quicker: Figure) -> float:
    return slower.outside - quicker.outside


def _twelve(slower: Figure, quicker: Figure) -> float:
    return 12 * _kernels(slower, quicker)  # layers


_EAGER, _COMPILED = "flash, deterministic", "blocks, deterministic"
SUSPECTS = [
    Suspect("compiled: mix-order reductions", (_COMPILED, "blocks, no mix-order"), _kernels, _COMPILED),
    Suspect("compiled: no tuning of reductions", (_COMPILED, "blocks, flash, ATen's switch"), _kernels, _COMPILED),
    Suspect("compiled: Python around blocks", (_COMPILED, "whole, deterministic"), _outside, _COMPILED),
    Suspect("compiled: launches, which CUDA graphs spare", (_COMPILED, "blocks, reduce-overhead"), _wall, _COMPILED),
    Suspect("compiled: what a whole model loses by order", ("whole, deterministic", "whole"), _kernels, "whole"),
    Suspect("attention: flash in cuDNN's place", ("flash", "plain"), _kernels, "plain"),
    Suspect("attention: flash in a fixed order", (_EAGER, "flash"), _kernels, "plain"),
    Suspect("attention: waves that are not full", (f"attention: {_EAGER}", "attention: split 11 and 5"), _twelve, "plain"),
    Suspect("the norm by halves", ("norm: by halves", "norm: in one pass"), _kernels, "plain"),
    Suspect("a division of its own", ("step: divided before", "step: divided within"), _kernels, "plain"),
    Suspect("samestep beside those kernels", ("samestep", _EAGER), _wall, "plain"),
    Suspect("samestep beside those kernels, compiled", ("samestep, compiled", _COMPILED), _wall, _COMPILED),
]


def verdicts(figures: Figures) -> list[dict[str, object]]:
    """For each suspect if it costs a hundredth of a step or more, and how much; "not measured" where a figure is missing."""
    found: list[dict[str, object]] = []
    for suspect in SUSPECTS:
        missing = [name for name in dict.fromkeys((*suspect.of, suspect.step)) if name not in figures]
        if missing:
            found.append({"suspect": suspect.name, "verdict": "not measured", "missing": missing})
            continue
        cost = suspect.costs(*(figures[name] for name in suspect.of))
        share = cost / figures[suspect.step].wall
        verdict = "confirmed" if share >= _MATTERS else "not confirmed"
        found.append({"suspect": suspect.name, "verdict": verdict, "ms": round(cost, 3), "of_a_step": round(share, 4)})
    return found
