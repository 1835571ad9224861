"""Checkpoints on disk: written aside, made durable, renamed, read back from the disk; only then does an older one go."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash

from samestep.checkpoint.bringing import have_whole
from samestep.checkpoint.reading import FORMAT, PART_BYTES, Damaged, text_checksum, verify
from samestep.checkpoint.state import Saved
from samestep.checkpoint.tensors import MALFORMED, pieces
from samestep.run.disk import make_durable
from samestep.run.folder import RunFolder

_ROOM_FOR_THE_REST_BYTES = 1 << 20


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        keep: how many of the newest stay.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._run, self._folder, self._keep = folder, folder.checkpoints, keep
        self.stays: Callable[[int], bool] = lambda step: False  # whether the checkpoint of a step is kept for ever

    def save(self, saved: Saved) -> Path:
        """Write, sync, rename, read back from the disk; only then does an older one go, and never the best by its metric.

        Returns the checkpoint's folder. Raises OSError if there is no room or no permission, and nothing is lost then.
        """
        self._run.refuse_if_succeeded()
        for left_over in self._folder.glob(".step-*.tmp"):
            if f".start-{self._run.start}." not in left_over.name:  # another rank of this start may be at it
                shutil.rmtree(left_over, ignore_errors=True)
        final = self._run.checkpoint(saved.step)
        if self.stands(saved.step):
            return final
        self._folder.mkdir(parents=True, exist_ok=True)
        self._refuse_a_full_disk(self._needed_bytes(saved) + _ROOM_FOR_THE_REST_BYTES)
        temporary = self._folder / self._temporary(saved.step)
        temporary.mkdir()
        try:
            self._write(saved, temporary)
            self._run.refuse_if_succeeded()
            temporary.rename(final)
            make_durable(self._folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._read_back(final)
        for step in passing(self.steps(), saved.step, self._keep, self.stays, saved.values.get("best_step")):
            shutil.rmtree(self._run.checkpoint(step), ignore_errors=True)
        return final

    def _read_back(self, final: Path) -> None:
        verify(final, from_disk=True)

    def _temporary(self, step: int) -> str:
        return f".step-{step:08d}.start-{self._run.start}.{os.getpid()}.tmp"

    def _needed_bytes(self, saved: Saved) -> int:
        return saved.num_bytes

    def _write_tensors(self, saved: Saved, folder: Path) -> dict[str, str]:
        """Write the tensors' files, durably; returns the checksum of each."""
        return {name: _write(folder / name, pieces(tensors)) for name, (tensors, _) in saved.files.items()}

    def _write(self, saved: Saved, folder: Path) -> None:
        files = self._write_tensors(saved, folder)
        values = saved.values if saved.proof is None else {**saved.values, "proof": saved.proof.tolist()}
        files["values.json"] = _write(folder / "values.json", [json.dumps(values).encode()])
        self._run.sync_metrics()
        manifest: dict[str, Any] = {"format": FORMAT, "step": saved.step, "torch": torch.__version__, "files": files}
        manifest["checksum"] = text_checksum(manifest)
        _write(folder / "manifest.json", [json.dumps(manifest, sort_keys=True, indent=1).encode(), b"\n"])
        make_durable(folder)

    def _refuse_a_full_disk(self, needed_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._folder).free
        if free_bytes < needed_bytes:
            words = f"{needed_bytes / 1e6:,.0f} MB are needed and {free_bytes / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, words, str(self._folder))

    def all(self) -> list[Path]:
        """The checkpoints that were renamed into place, newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)

    def steps(self) -> list[int]:
        """The steps of all, newest first."""
        return [step_of(path) for path in self.all()]

    def stands(self, step: int) -> bool:
        """Whether the checkpoint of a step is there and whole; what could not be loaded goes, to be written again."""
        path = self._run.checkpoint(step)
        if not path.exists():
            return False
        try:
            verify(path)
        except Damaged:
            shutil.rmtree(path)
            return False
        return True

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step stands there."""
        return self._run.checkpoint(step).is_dir()

    def best_step(self) -> int | None:
        """The best that the newest checkpoint knows of."""
        for path in self.all():
            with contextlib.suppress(OSError, *MALFORMED):
                return json.loads((path / "values.json").read_text())["best_step"]  # type: ignore[no-any-return]
        return None

    def newest(self) -> tuple[Path | None, int, list[str]]:
        """The newest checkpoint that verifies, its step, and why each newer one was passed over.

        Raises TrainingError if one cannot be read: it may be whole, and then going back before it would lose its steps.
        """
        passed_over: list[str] = []
        for path in self.all():
            try:
                have_whole(self._run, step_of(path))
                return path, verify(path), passed_over
            except Damaged as error:
                passed_over.append(f"passed over {error}")
        return None, 0, passed_over


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def passing(steps: list[int], newest: int, keep: int, stays: Callable[[int], bool], best: int | None) -> list[int]:
    """Of the checkpoints of `steps`, newest first, those that go once that of `newest` is safe: never the best by its metric.

    Newer ones were passed over when the run was resumed: they are damaged, and no reason to let a whole one go.
    """
    old = [step for step in steps if step < newest and not stays(step)]
    return [step for step in old[keep - 1 :] if step != best]


def _write(path: Path, content: Iterable[bytes | memoryview]) -> str:
    """Write a file and make it durable; returns its checksum."""
    digest = xxhash.xxh3_128()
    with path.open("wb", buffering=0) as file:
        for piece in content:
            view = memoryview(piece)
            while view:
                part = view[:PART_BYTES]
                written = file.write(part)
                digest.update(part[:written])
                view = view[written:]
        os.fsync(file.fileno())
    return digest.hexdigest()
