"""In what two identities of data differ, in a line for each kind of difference."""

from __future__ import annotations

from samestep.sources.identity import Identity
from samestep.sources.source import SLICE_ROWS, SLICES

_ADVICE = "give data() the rows that the run began with, or start a new run"


def differences(
    before: Identity, now: Identity, split: str, had: str = "had", has: str = "has", advice: str = _ADVICE
) -> list[str]:
    """How two identities differ, a line for each kind of difference; none if they are of the same data.

    The fingerprint alone is no difference: `datasets` draws a new one for what it cannot hash. Nor is the time at which a file
    was changed: copies have their own.

    Args:
        had, has: the words before each side's values; between ranks "on rank 0 has" and "on rank 1 has", say.
    """
    return [f"data: {words}; {advice}" for words in _differences(before, now, f'"{split}"', had, has)]


def _differences(before: Identity, now: Identity, name: str, had: str, has: str) -> list[str]:
    if (old := before.get("files")) and (new := now.get("files")) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            if one[1] != other[1]:
                words = f"the file {one[0]} with the checksum {one[1]} and {has} {other[0]} with {other[1]}"
                return [f"{name} {had} {words}"]
    found = []
    if before["rows"] != now["rows"]:
        found.append(f"{name} {had} {before['rows']} rows and {has} {now['rows']}")
    if before["columns"] != now["columns"]:
        one = [column for column in before["columns"] if column not in now["columns"]]
        other = [column for column in now["columns"] if column not in before["columns"]]
        if not one and not other:  # the same in another order
            one, other = before["columns"], now["columns"]
        found.append(f"{name} {had} {_listed(one)} and {has} {_listed(other)}")
    if before["format"] != now["format"]:
        found.append(f"{name} {had} the format {before['format']} and {has} {now['format']}")
    if not found:
        parts = zip(before.get("parts", ()), now.get("parts", ()), strict=False)
        for number, (one, other) in enumerate(parts, 1):
            found += _differences(one, other, f"source {number} of {name}", had, has)
    if not found and before["whole"] == now["whole"] and before["checksum"] != now["checksum"]:
        found.append(f"{name} {had} {before['rows']} rows with the checksum {before['checksum'][:12]} and {has} as many with "
                     f"{now['checksum'][:12]}, other values or another order")  # fmt: skip
    return found


def doubt(before: Identity, now: Identity, split: str) -> str | None:
    """The note on data too large for a whole checksum, of which something says that they are others."""
    return _doubt(before, now, f'"{split}"')


def _doubt(before: Identity, now: Identity, name: str) -> str | None:
    if before["whole"] and now["whole"]:
        return None
    for one, other in zip(before.get("files", ()), now.get("files", ()), strict=False):
        if one[2] != other[2]:
            return (
                f"data: {name}: the file {other[0]} has the size and the footer that it had, but another time of change or "
                "ETag; if other rows changed, start a new run"
            )
    for number, (one, other) in enumerate(zip(before.get("parts", ()), now.get("parts", ()), strict=False), 1):
        if words := _doubt(one, other, f"source {number} of {name}"):
            return words
    if before["fingerprint"] == now["fingerprint"]:
        return None
    return (
        f"data: {name} has the size, the columns and, in the {SLICES * SLICE_ROWS} rows looked at, the values that it had, "
        f"but the fingerprint {now['fingerprint']} where it had {before['fingerprint']}; if other rows changed, start a new run"
    )


def _listed(columns: list[str]) -> str:
    return ", ".join(columns) or "no other column"
