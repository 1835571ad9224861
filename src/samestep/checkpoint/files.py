"""Checkpoints on disk: written aside, made durable, renamed, read back from the disk; only then does an older one go."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash

from samestep.checkpoint.state import Saved
from samestep.checkpoint.tensors import MALFORMED, parse, pieces
from samestep.errors import TrainingError
from samestep.run_folder import RunFolder, make_durable

_FORMAT = 2
_PART_BYTES = 1 << 24
_SHOWN_LATE_S = 60.0
_ROOM_FOR_THE_REST_BYTES = 1 << 20


class Damaged(TrainingError):
    """A checkpoint that does not hold what was saved."""


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        keep: how many of the newest stay.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._run, self._folder, self._keep = folder, folder.checkpoints, keep

    def save(self, saved: Saved) -> Path:
        """Write, sync, rename, read back from the disk; only then does an older one go, and never the best by its metric.

        Returns the checkpoint's folder. Raises OSError if there is no room or no permission, and nothing is lost then.
        """
        self._run.refuse_if_succeeded()
        for left_over in self._folder.glob(".step-*.tmp"):
            if f".start-{self._run.start}." not in left_over.name:  # another rank of this start may be at it
                shutil.rmtree(left_over, ignore_errors=True)
        final = self._folder / f"step-{saved.step:08d}"
        if final.exists():
            try:
                verify(final)
                return final
            except Damaged:
                shutil.rmtree(final)  # what could not be loaded is written again
        self._folder.mkdir(parents=True, exist_ok=True)
        self._refuse_a_full_disk(saved.num_bytes + _ROOM_FOR_THE_REST_BYTES)
        temporary = self._folder / f".step-{saved.step:08d}.start-{self._run.start}.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            self._write(saved, temporary)
            self._run.refuse_if_succeeded()
            temporary.rename(final)
            make_durable(self._folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        verify(final, from_disk=True)
        # Newer ones were passed over when the run was resumed: they are damaged, and no reason to let a whole one go.
        for old in [path for path in self.all() if path.name < final.name][self._keep - 1 :]:
            if old.name != f"step-{saved.values.get('best_step') or 0:08d}":
                shutil.rmtree(old, ignore_errors=True)
        return final

    def _write(self, saved: Saved, folder: Path) -> None:
        if saved.arrived is not None:
            saved.arrived.synchronize()
        files = {
            "weights.safetensors": _write(folder / "weights.safetensors", pieces(saved.weights)),
            "optimizer.safetensors": _write(folder / "optimizer.safetensors", pieces(saved.optimizer)),
            "values.json": _write(folder / "values.json", [json.dumps(saved.values).encode()]),
        }
        self._run.sync_metrics()
        manifest: dict[str, Any] = {"format": _FORMAT, "step": saved.step, "torch": torch.__version__, "files": files}
        manifest["checksum"] = _text_checksum(manifest)
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

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step stands there."""
        return (self._folder / f"step-{step:08d}").is_dir()

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
                return path, verify(path), passed_over
            except Damaged as error:
                passed_over.append(f"passed over {error}")
        return None, 0, passed_over


def _write(path: Path, content: Iterable[bytes | memoryview]) -> str:
    """Write a file and make it durable; returns its checksum."""
    digest = xxhash.xxh3_128()
    with path.open("wb", buffering=0) as file:
        for piece in content:
            view = memoryview(piece)
            while view:
                part = view[:_PART_BYTES]
                written = file.write(part)
                digest.update(part[:written])
                view = view[written:]
        os.fsync(file.fileno())
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """The checksum of a checkpoint's manifest, and so of all that is in it."""
    return _text_checksum(_manifest(path))


def read_chosen(path: Path, chosen: str) -> Saved:
    """Load the checkpoint that rank 0 chose, by its checksum; a network file system may show another node's writes late."""
    until = time.monotonic() + _SHOWN_LATE_S
    while True:
        try:
            if checksum(path) == chosen:
                return read(path)
            error = TrainingError(f"{path}: is not the checkpoint that rank 0 reads there; is the run folder shared?")
        except TrainingError as damaged:
            error = damaged
        if time.monotonic() > until:
            raise error
        time.sleep(1.0)


def read(path: Path) -> Saved:
    """Verify and load one checkpoint; TrainingError says what is wrong with it. Nothing in it is ever executed."""
    manifest = _manifest(path)
    found = {}
    for name, expected in manifest["files"].items():
        try:
            found[name], found_checksum = _read_whole(path / name)
        except OSError as error:
            raise _not_whole(path, error) from None
        if found_checksum != expected:
            raise Damaged(f"{path}: {name} is damaged")
    try:
        return Saved(
            int(manifest["step"]),
            parse(found["weights.safetensors"]),
            parse(found["optimizer.safetensors"]),
            json.loads(found["values.json"].numpy().tobytes()),
        )
    except MALFORMED as error:
        raise _not_whole(path, error) from None


def _read_whole(path: Path) -> tuple[torch.Tensor, str]:
    """A file's bytes and their checksum, in one pass."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        whole = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        view, filled = whole.numpy().data, 0
        while length := file.readinto(view[filled : filled + _PART_BYTES]):
            digest.update(view[filled : filled + length])
            filled += length
    return whole[:filled], digest.hexdigest()


def verify(path: Path, from_disk: bool = False) -> int:
    """The step of a checkpoint that is whole; TrainingError says what is wrong with it.

    Args:
        from_disk: read what the disk holds, not what the page cache still has of it.
    """
    manifest = _manifest(path)
    for name, expected in manifest["files"].items():
        try:
            found = _checksum(path / name, from_disk)
        except OSError as error:
            raise _not_whole(path, error) from None
        if found != expected:
            raise Damaged(f"{path}: {name} is damaged")
    return int(manifest["step"])


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        checksum = manifest.pop("checksum")
        whole = _text_checksum(manifest) == checksum and int(manifest["step"]) >= 0 and manifest["files"].keys()
    except (OSError, *MALFORMED) as error:
        raise _not_whole(path, error) from None
    if not whole:
        raise Damaged(f"{path}: the manifest is damaged")
    if manifest["format"] != _FORMAT:
        raise TrainingError(
            f"{path}: is of format {manifest['format']}, and this version reads {_FORMAT}; go on with the version that wrote "
            f"it, or begin a new run with init={path / 'weights.safetensors'}"
        )
    return manifest


def _not_whole(path: Path, error: Exception) -> TrainingError:
    if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return TrainingError(
            f"{path}: cannot be read ({error.strerror}); mend that, or move the folder away to go on from the one before"
        )
    return Damaged(f"{path}: not a whole checkpoint ({type(error).__name__}: {error})")


def _text_checksum(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def _checksum(path: Path, from_disk: bool) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # synced pages are clean, and can be dropped
        while part := file.read(_PART_BYTES):
            digest.update(part)
    return digest.hexdigest()
