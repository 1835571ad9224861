"""Reading checkpoints back: none is believed before its checksums are."""

from __future__ import annotations

import collections
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import xxhash

from samestep.checkpoint.state import Saved
from samestep.checkpoint.tensors import MALFORMED, parse
from samestep.errors import TrainingError

FORMAT = 2
PART_BYTES = 1 << 24
_SHOWN_LATE_S = 90.0


class Damaged(TrainingError):
    """A checkpoint that does not hold what was saved."""


def checksum(path: Path) -> str:
    """The checksum of a checkpoint's manifest, and so of all that is in it."""
    return text_checksum(manifest_of(path))


def read_chosen(path: Path, chosen: str, mapped: bool = False) -> Saved:
    """Load the checkpoint that rank 0 chose, by its checksum; a network file system may show another node's writes late.

    Args:
        mapped: as of `read`; rank 0 has verified it.
    """
    until = time.monotonic() + _SHOWN_LATE_S
    while True:
        try:
            if checksum(path) == chosen:
                return read(path, mapped)
            error = TrainingError(f"{path}: is not the checkpoint that rank 0 reads there; is the run folder shared?")
        except TrainingError as damaged:
            error = damaged
        if time.monotonic() > until:
            raise error
        time.sleep(1.0)


def read(path: Path, mapped: bool = False) -> Saved:
    """Verify and load one checkpoint; TrainingError says what is wrong with it. Nothing in it is ever executed.

    Args:
        mapped: leave the tensors on disk, where only what is looked at is read, and trust them: somebody has verified them.
    """
    manifest = manifest_of(path)
    found = {}
    for name, expected in manifest["files"].items():
        try:
            if mapped and name.endswith(".safetensors"):
                size = (path / name).stat().st_size
                found[name] = torch.from_file(str(path / name), shared=False, size=size, dtype=torch.uint8)
                continue
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
        while length := file.readinto(view[filled : filled + PART_BYTES]):
            digest.update(view[filled : filled + length])
            filled += length
    return whole[:filled], digest.hexdigest()


def verify(path: Path, from_disk: bool = False) -> int:
    """The step of a checkpoint that is whole; TrainingError says what is wrong with it.

    Args:
        from_disk: read what the disk holds, not what the page cache still has of it.
    """
    manifest = manifest_of(path)
    for name, expected in manifest["files"].items():
        try:
            found = _checksum(path / name, from_disk)
        except OSError as error:
            raise _not_whole(path, error) from None
        if found != expected:
            raise Damaged(f"{path}: {name} is damaged")
    return int(manifest["step"])


def manifest_of(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        checksum = manifest.pop("checksum")
        whole = text_checksum(manifest) == checksum and int(manifest["step"]) >= 0 and manifest["files"].keys()
    except (OSError, *MALFORMED) as error:
        raise _not_whole(path, error) from None
    if not whole:
        raise Damaged(f"{path}: the manifest is damaged")
    if manifest["format"] != FORMAT:
        raise TrainingError(
            f"{path}: is of format {manifest['format']}, and this version reads {FORMAT}; go on with the version that wrote "
            f"it, or begin a new run with init={path / 'weights.safetensors'}"
        )
    return manifest


def _not_whole(path: Path, error: Exception) -> TrainingError:
    if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return TrainingError(
            f"{path}: cannot be read ({error.strerror}); mend that, or move the folder away to go on from the one before"
        )
    return Damaged(f"{path}: not a whole checkpoint ({type(error).__name__}: {error})")


def text_checksum(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def read_parts(path: Path, header_bytes: int, lengths: list[tuple[int, int]]) -> tuple[str, dict[int, str]]:
    """The checksum of a file as the disk holds it, and of each rank's bytes in it.

    Args:
        lengths: whose bytes follow each other after the header, and how many.
    """
    whole, parts = xxhash.xxh3_128(), collections.defaultdict[int, Any](xxhash.xxh3_128)
    with path.open("rb", buffering=0) as file:
        _drop_from_cache(file.fileno())
        for rank, length in [(-1, header_bytes), *lengths]:
            while length:
                part = file.read(min(length, PART_BYTES))
                if not part:
                    raise OSError(f"{path.name} ends too early")
                whole.update(part)
                parts[rank].update(part)
                length -= len(part)
    return whole.hexdigest(), {rank: digest.hexdigest() for rank, digest in parts.items()}


def _drop_from_cache(handle: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # synced pages are clean, and can be dropped


def _checksum(path: Path, from_disk: bool) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        if from_disk:
            _drop_from_cache(file.fileno())
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()
