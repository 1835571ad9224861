"""RUN.proof.json: what a run was made of, hashes along it as a chain, and what of it was trained again, where and when."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from samestep.commands.pinned import Origin, data_digests
from samestep.commands.prove.stretches import Stretch
from samestep.config import read_text
from samestep.errors import UsageError
from samestep.run.disk import write_atomically
from samestep.run.metric_rows import Row, timeless


@dataclass
class Kept:
    """A kept checkpoint: SHA-256 of its weights (as in state.json) and of the rest of its state, and who computed what."""

    step: int
    weights: str
    state: str
    kind: dict[str, str]
    data: dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Link(_Strict):
    """A kept checkpoint, the rows up to it from the one before, and SHA-256 of these and of the link before."""

    step: int
    rows: str
    weights: str
    state: str
    chain: str = ""

    def behind(self, before: str) -> Self:
        """The same link at its place in the chain: after the one that has the hash `before`."""
        text = json.dumps([before, self.step, self.rows, self.weights, self.state])
        return self.model_copy(update={"chain": hashlib.sha256(text.encode()).hexdigest()})


class Draw(_Strict):
    """How stretches were drawn: from how many."""

    share: float
    seed: int
    total: int


class Check(_Strict):
    """Stretches that were trained again, and came out as the run has them.

    Args:
        time: in UTC.
        draw: None where they were named.
    """

    time: str
    host: str
    kind: dict[str, str]
    versions: list[str]
    code: dict[str, str]
    draw: Draw | None
    stretches: list[tuple[int, int]]
    rows: int


class Proof(Origin):
    """Of one run.

    Args:
        parent: of a branch: its parent's name, and the step from which it goes on.
    """

    run: str
    parent: dict[str, Any] | None
    links: list[Link]
    checks: list[Check]

    def linked(self) -> Self:
        """With the hashes that its own content has."""
        head = {"parent": self.parent, "config": self.config, "code": self.code, "data": self.data, "kind": self.kind}
        before = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        links = []
        for link in self.links:
            links.append(link.behind(before))
            before = links[-1].chain
        return self.model_copy(update={"links": links})

    @property
    def chain(self) -> str:
        """The hash at its end, and so of all of it."""
        return self.links[-1].chain

    @property
    def stretches(self) -> list[Stretch]:
        """All that were trained again."""
        return sorted({Stretch(*pair) for check in self.checks for pair in check.stretches})

    def parted(self, now: Proof) -> list[str]:
        """In what a run as it is `now` differs from it, as far as this goes."""
        from samestep.runtime.device_kind import differences  # and with it torch, once everything typed has been checked

        found = [*self.others(now), *(f"its device's {line}" for line in differences(self.kind, now.kind))]
        if self.parent != now.parent:
            found.append(f"its parent was {self.parent} and is {now.parent}")
        there = {link.step: link for link in now.links}
        for link in self.links:
            other = there.get(link.step)
            if other is None:
                found.append(f"the checkpoint of step {link.step} is not there any more")
                continue
            if link.weights != other.weights:
                found.append(f"the weights after step {link.step} are others")
            elif link.state != other.state:
                found.append(f"the optimizer's state after step {link.step} is another")
            if link.rows != other.rows:
                found.append(f"the rows up to step {link.step}, from the checkpoint before, are others")
        return found


def record(origin: dict[str, Any], kept: Sequence[Kept], rows: Sequence[Row]) -> Proof:
    """A run as it stands, with nothing checked yet.

    Args:
        origin: its name, parent, code and config.
        kept: at least one, by their steps.
    """
    steps, digests = [one.step for one in kept], [hashlib.sha256() for _ in kept]
    for row in rows:
        if (place := bisect.bisect_left(steps, row["step"])) < len(steps):
            digests[place].update(json.dumps(timeless(row), sort_keys=True).encode() + b"\n")
    links = [
        Link(step=one.step, rows=digest.hexdigest(), weights=one.weights, state=one.state)
        for one, digest in zip(kept, digests, strict=True)
    ]
    made_of = {**origin, "kind": kept[-1].kind, "data": data_digests(kept[-1].data)}
    return Proof(**made_of, links=links, checks=[]).linked()


class _File(Proof):
    format: Literal[1]


def read_proof(path: Path) -> Proof:
    """What `samestep prove` wrote. Raises UsageError if there is no such file, it holds something else, or it was edited."""
    if not path.is_file():
        raise UsageError(f"{path}: found no proof there; samestep prove RUN writes one")
    try:
        proof = _File.model_validate_json(read_text(path, path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise UsageError(f"{path}: {where} is not as samestep prove writes it; restore the file, or prove anew") from None
    if not proof.links:
        raise UsageError(f"{path}: found no checkpoints in it; restore the file, or prove anew")
    return proof


def broken_at(proof: Proof) -> int | None:
    """The first step where a proof's hashes are not those of its own content: somebody has edited it."""
    pairs = zip(proof.links, proof.linked().links, strict=True)
    return next((link.step for link, own in pairs if link != own), None)


def write_proof(path: Path, proof: Proof) -> None:
    """Raises UsageError where it cannot."""
    text = json.dumps({"format": 1, **proof.model_dump(exclude={"format"})}, indent=1) + "\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"{path}: could not be written ({error.strerror}); mend that, and prove again") from None
