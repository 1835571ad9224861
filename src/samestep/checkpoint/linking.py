"""A checkpoint in another run's folder: its tensors are the same files, and nothing is copied where links are to be had."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from samestep.checkpoint.reading import manifest_of, text_checksum, verify
from samestep.run.disk import make_durable, write_atomically

_VALUES = "values.json"


def link_checkpoint(path: Path, into: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values) -> None:
    """Lay a whole checkpoint into another `checkpoints` folder, with other values. Raises TrainingError if it is damaged."""
    verify(path)
    manifest = manifest_of(path)
    target = into / path.name
    target.mkdir(parents=True)
    for name in manifest["files"]:
        if name != _VALUES:
            _link(path / name, target / name)
    text = json.dumps(change(json.loads((path / _VALUES).read_text()))).encode()
    write_atomically(target / _VALUES, text)
    manifest["files"] = {**manifest["files"], _VALUES: xxhash.xxh3_128_hexdigest(text)}
    manifest["checksum"] = text_checksum(manifest)
    write_atomically(target / "manifest.json", json.dumps(manifest, sort_keys=True, indent=1) + "\n")
    verify(target)
    make_durable(into)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        make_durable(target)
