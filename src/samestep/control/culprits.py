"""Who it is that all wait for, read from the beats of every rank."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MEETING = "meeting the other ranks"
SAVING = "saving"
TORN_OUT = "torn out of a meeting"
ASKING_AGAIN = "reading data, and the store has to be asked again"
_UNHEARD = {"step": 0, "phase": "starting", "host": "a host that was never heard of", "for_s": 0}


class Table:
    """Where each rank stands.

    Args:
        before: what the board had of each rank's beats two seconds ago.
        now: what it has now.
        own: the rank that asks, which is not silent.
    """

    def __init__(self, before: dict[int, str], now: dict[int, str], own: int, world_size: int) -> None:
        self.rows: dict[int, dict[str, Any]] = {
            rank: json.loads(now.get(rank, "null")) or _UNHEARD for rank in range(world_size)
        }
        self._frozen = [
            rank
            for rank, at in self.rows.items()
            if rank != own
            and at["phase"] != TORN_OUT  # by its own watchdog, and beats no more
            and ("beat" not in at or json.loads(before.get(rank, "{}")).get("beat") == at["beat"])
        ]
        late = [rank for rank, at in self.rows.items() if at["phase"] not in (MEETING, TORN_OUT) and rank not in self._frozen]
        if not late and len({at["step"] for at in self.rows.values()}) > 1:  # all have come to the meeting that one is still in
            late = list(self.rows)
        behind = min((self.rows[rank]["step"] for rank in late), default=0)
        self.culprits = self._frozen or [rank for rank in late if self.rows[rank]["step"] == behind]
        if world_size == 1:
            self.culprits = [own]

    @property
    def is_patient(self) -> bool:
        """Whether one that all wait for saves, or asks a store again: that takes as long as it takes."""
        return not self._frozen and any(self.rows[rank]["phase"] in (SAVING, ASKING_AGAIN) for rank in self.culprits)

    def hosts(self, ranks: Iterable[int]) -> dict[int, str]:
        return {rank: str(self.rows[rank]["host"]) for rank in ranks}

    def paragraph(self, patience_s: float, log: Path) -> str:
        words = [] if self.culprits else ["all ranks wait for each other, as where a message is lost"]
        for rank in self.culprits:
            at = self.rows[rank]
            doing = "does not answer any more, last seen" if rank in self._frozen else "has been"
            whose = f"the device of rank {rank}" if at.get("device") else f"rank {rank}"
            words.append(f"{whose} on {at['host']} {doing} {at['phase']} in step {at['step']}")
        lines = [
            f"  rank {rank} on {at['host']}: step {at['step']}, {at['phase']} for {at['for_s']} s"
            + (" (silent)" if rank in self._frozen else "")
            for rank, at in sorted(self.rows.items())
        ]
        moved = f"{'; '.join(words)}: nothing has moved for {patience_s:.0f} s. Every thread's stack is in {log}"
        return "\n".join([moved, *lines])
