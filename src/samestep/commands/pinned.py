"""A file of pinned bits: what the first steps of a config came to, on each kind of device where somebody has pinned them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from samestep.commands.first_steps import Run
from samestep.commands.version import versions
from samestep.config import Config, maths, read_text
from samestep.errors import UsageError
from samestep.run.disk import write_atomically
from samestep.run.metric_rows import Row, timeless

_NOT_PINNED = {"epoch", "fingerprint"}  # the sum of `fingerprints`
_HEX_DIGITS = 8
_SHOWN = 4


class Origin(BaseModel):
    """What numbers were made of.

    Args:
        kind: of the device.
        config: the dotted keys that are part of the maths.
        data, code: a checksum for each split, and for each file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: dict[str, str]
    code: dict[str, str]
    data: dict[str, str]
    config: dict[str, Any]

    def others(self, now: Origin) -> list[str]:
        """What is another in `now`: config, data, code; the kind of device is told apart."""
        keys = dict.fromkeys([*self.config, *now.config])
        found = [
            f"config {key} was {self.config.get(key)!r} and is {now.config.get(key)!r}"
            for key in keys
            if self.config.get(key) != now.config.get(key)
        ]
        found += [f"the rows of {split!r} are others" for split in differing(self.data, now.data)]
        code = differing(self.code, now.code)
        return [*found, *([f"the code is another ({', '.join(code)})"] if code else [])]


class Pin(Origin):
    """What a config's first steps came to on one kind of device, and all that they were made of.

    Args:
        rows: as in metrics.jsonl, without what the clock says; `gradients` has a checksum for each of `parameters`.
    """

    versions: list[str]
    parameters: list[str]
    rows: list[Row]
    weights: str

    @property
    def num_steps(self) -> int:
        return int(self.rows[-1]["step"])

    def others(self, now: Origin) -> list[str]:
        here = now.versions if isinstance(now, Pin) else []
        return [*super().others(now), *(f"{line} is here" for line in here if line not in self.versions)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal[1]
    pins: list[Pin]


def pin_of(config: Config, run: Run, parameters: list[str]) -> Pin:
    """What a run of a config's first steps came to."""
    is_known = len(run.steps[0]["fingerprints"]) == len(parameters)
    return Pin(
        kind=run.state["kind"],
        versions=versions(),
        code=run.state["code"],
        data=data_digests(run.data),
        config=maths(config),
        parameters=parameters if is_known else [f"number {n}" for n in range(len(run.steps[0]["fingerprints"]))],
        rows=[_pinned(row) for row in run.rows],
        weights=run.weights,
    )


def _pinned(row: Row) -> Row:
    kept = {key: value for key, value in timeless(row).items() if key not in _NOT_PINNED}
    prints = kept.pop("fingerprints", None)
    if prints is not None:
        kept["gradients"] = " ".join(xxhash.xxh3_64_hexdigest(str(value).encode())[:_HEX_DIGITS] for value in prints)
    return kept


def data_digests(data: dict[str, dict[str, Any] | None]) -> dict[str, str]:
    """A checksum for each split, of what tells its rows from others: not of when a file was changed."""
    told = {
        split: [facts.get(key) for key in ("rows", "columns", "format", "checksum")]
        for split, facts in data.items()
        if facts is not None
    }
    return {split: xxhash.xxh3_64_hexdigest(json.dumps(facts).encode()) for split, facts in told.items()}


def listed(lines: list[str]) -> str:
    """The first of them in one line, and how many more there are."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "; ".join([*lines[:_SHOWN], *more])


def differing(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def read_pins(path: Path) -> list[Pin]:
    """The pins of a file, at least one. Raises UsageError if there is no such file, or it holds something else."""
    if not path.is_file():
        raise UsageError(f"{path}: found no pinned bits there; samestep pin CONFIG writes them")
    try:
        found = _File.model_validate_json(read_text(path, path)).pins
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise UsageError(f"{path}: {where} is not as samestep pin writes it; restore the file, or pin anew") from None
    if len({pin.rows[-1].get("step") if pin.rows else None for pin in found} - {None}) != 1:
        raise UsageError(f"{path}: found no steps in it, or several lengths; restore the file, or pin anew")
    return found


def write_pins(path: Path, pins: list[Pin]) -> None:
    """A line for each row, so that a change shows as such beside other changes. Raises UsageError where it cannot."""
    texts = []
    for pin in pins:
        rest = json.dumps({key: value for key, value in pin.model_dump().items() if key != "rows"}, indent=1)
        rows = ",\n  ".join(json.dumps(row) for row in pin.rows)
        texts.append(rest[:-2] + f',\n "rows": [\n  {rows}\n ]\n}}')
    text = '{"format": 1, "pins": [\n' + ",\n".join(texts) + "\n]}\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"{path}: could not be written ({error.strerror}); mend that, or copy the config elsewhere") from None


def nearest_pin(pins: list[Pin], kind: dict[str, str]) -> tuple[Pin, list[str]]:
    """The pin of this kind of device, or of the one most like it; and in what that differs from this one."""
    from samestep.runtime.device_kind import differences  # and with it torch, once everything typed has been checked

    told = [(differences(pin.kind, kind), pin) for pin in pins]
    parted, pin = min(told, key=lambda pair: len(pair[0]))
    return pin, parted
