"""Reads what an offline wandb run holds: wandb's own reader is a Go program."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def offline_runs(folder: Path) -> list[Path]:
    """The folders of a run's starts under `folder`/wandb, in order."""
    return sorted(folder.glob("wandb/offline-run-*"), key=lambda path: next(path.glob("run-*.wandb")).stat().st_ctime_ns)


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which a .wandb file is behind its first 7 bytes.

    Blocks of 32 KiB hold fragments: checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), payload.
    """
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if kind == 0:
            break
        record = (b"" if kind in (1, 2) else record) + data[place + 7 : place + 7 + length]
        if kind in (1, 4):
            yield record
        place += 7 + length


@dataclass
class Offline:
    """What one offline folder holds: wandb's message about the run, its config, rows, summary, and the files to upload."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None


def read_wandb(folder: Path) -> Offline:
    (file,) = folder.glob("run-*.wandb")
    found = Offline()
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "files":
            found.files += [each.path for each in record.files.files]
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
