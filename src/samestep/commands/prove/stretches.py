"""Which stretches of a run can be trained again, which of them are, and what that leaves to chance."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from samestep.errors import UsageError

_LARGEST_PART = 0.5  # of a run's steps: a longer stretch is trained where that is asked for
_COUNTS = (1, 2, 5)  # wrong stretches whose odds are told, and these times ten, a hundred, …
_HARDLY = 0.01
_DOUBT = 0.05


@dataclass(frozen=True, order=True)
class Stretch:
    """The steps after a kept checkpoint, or after the start (0), to the next one that is kept."""

    first: int
    last: int

    @property
    def num_steps(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"steps {self.first + 1} to {self.last}" if self.num_steps > 1 else f"step {self.last}"


def stretches_between(steps: Sequence[int], origin: int = 0) -> list[Stretch]:
    """Those of a run with checkpoints of these steps, from its own beginning on: step 0, or where it branches off."""
    return [Stretch(*pair) for pair in itertools.pairwise([origin, *sorted(step for step in steps if step > origin)])]


def named(words: Sequence[str], stretches: Sequence[Stretch]) -> list[Stretch]:
    """The stretches that `200-400` and the like are made of. Raises UsageError for steps without a checkpoint."""
    known = {step for stretch in stretches for step in (stretch.first, stretch.last)}
    chosen: set[Stretch] = set()
    for word in words:
        match = re.fullmatch(r"(\d{1,15})-(\d{1,15})", word, re.ASCII)
        first, last = map(int, match.groups()) if match else (0, 0)
        if first >= last or not {first, last} <= known:
            there = ", ".join(map(str, sorted(known)))
            raise UsageError(f"--stretch: found {word!r}; write FIRST-LAST, two of the steps that are kept: {there}")
        chosen |= {stretch for stretch in stretches if first <= stretch.first and stretch.last <= last}
    return sorted(chosen)


def in_the_draw(stretches: Sequence[Stretch], share: float) -> list[Stretch]:
    """Those that a share of a run may be drawn from: not one that is most of the run by itself."""
    whole = sum(stretch.num_steps for stretch in stretches)
    return [stretch for stretch in stretches if stretch.num_steps <= max(share, _LARGEST_PART) * whole]


def draw(stretches: Sequence[Stretch], share: float, seed: int) -> list[Stretch]:
    """So large a share of the stretches, at least one; each is as likely to be drawn. The same anywhere for the same seed."""
    number = math.ceil(round(share * len(stretches), 9))

    def place(stretch: Stretch) -> bytes:
        return hashlib.sha256(f"{seed} {stretch.first} {stretch.last}".encode()).digest()

    return sorted(sorted(stretches, key=place)[: max(1, number)])


def unseen(total: int, drawn: int, wrong: int) -> float:
    """The chance that none of `wrong` stretches among `total` is one of the `drawn`: hypergeometric."""
    return math.prod((total - drawn - number) / (total - number) for number in range(wrong))


def odds(total: int, drawn: int) -> str:
    """What a draw in which all was right leaves to chance, in a line."""
    if drawn == total:
        return f"nothing is left to chance: all {total} that were drawn from were trained again"
    counts = [count * 10**zeros for zeros in range(len(str(total))) for count in _COUNTS]
    told = [f"1 wrong stretch of the {total} drawn from would have stayed unseen with {unseen(total, drawn, 1):.1%}"]
    for wrong in [count for count in counts if 1 < count <= total]:
        chance = unseen(total, drawn, wrong)
        told.append(f"{wrong} with {chance:.1%}")
        if chance < _HARDLY:
            break
    most, chance = 0, 1.0
    while (chance := chance * (total - drawn - most) / (total - most)) >= _DOUBT:
        most += 1
    return f"left to chance: {', '.join(told)}; with {1 - _DOUBT:.0%} certainty no more than {most} of them are wrong"
