"""Checkpoints: whole or absent, verified before they are used, and knowing nothing of ranks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash

from samestep.errors import TrainingError, UsageError
from samestep.run_folder import RunFolder, sync_folder

_FORMAT = 1


@dataclass
class Saved:
    """What a checkpoint holds: finished steps, tensors by name, and the rest as plain values."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    values: dict[str, Any]


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the state_dict sorted by name: name, dtype and shape as text, then the contiguous CPU bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def capture(
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    values: dict[str, Any],
) -> Saved:
    """Copy the state after `step` finished steps to the CPU; tied weights are stored once."""
    weights: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        spot = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and spot in owners:
            ties[name] = owners[spot]
        else:
            owners[spot] = name
            weights[name] = _copied(tensor)
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = _copied(value)
            else:
                plain[f"{number}.{key}"] = value
    return Saved(
        step,
        weights,
        tensors,
        {
            **values,
            "ties": ties,
            "optimizer": {"plain": plain, "groups": state["param_groups"]},
            "scaler": scaler.state_dict() if scaler else None,
        },
    )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def restore(
    saved: Saved,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Put a checkpoint's state into a model, and into its optimizer and scaler where given."""
    weights = {**saved.weights, **{name: saved.weights[owner] for name, owner in saved.values["ties"].items()}}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from None
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*saved.optimizer.items(), *saved.values["optimizer"]["plain"].items()):
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": saved.values["optimizer"]["groups"]})
    if scaler is not None and saved.values["scaler"]:
        scaler.load_state_dict(saved.values["scaler"])


class Checkpoints:
    """The checkpoints of a run folder."""

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._folder, self._keep = folder.checkpoints, keep

    def save(self, saved: Saved) -> Path:
        """Write, sync, rename, read back; only then does an older one go. Returns the checkpoint's folder."""
        final = self._folder / f"step-{saved.step:08d}"
        if final.exists():
            return final
        temporary = self._folder / f".step-{saved.step:08d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            safetensors.torch.save_file(saved.weights, temporary / "weights.safetensors")
            safetensors.torch.save_file(saved.optimizer, temporary / "optimizer.safetensors")
            (temporary / "values.json").write_text(json.dumps(saved.values))
            files = sorted(temporary.iterdir())
            manifest = {
                "format": _FORMAT,
                "step": saved.step,
                "torch": torch.__version__,
                "files": {file.name: _checksum(file) for file in files},
            }
            text = json.dumps(manifest, sort_keys=True)
            manifest["checksum"] = _text_checksum(text)
            (temporary / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")
            for file in temporary.iterdir():
                _sync(file)
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(self._folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        verify(final)
        self._prune()
        return final

    def _prune(self) -> None:
        for old in self.all()[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def all(self) -> list[Path]:
        """The checkpoints that were renamed into place, newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)

    def newest(self) -> tuple[Path | None, int, list[str]]:
        """The newest checkpoint that verifies, its step, and why each newer one was passed over."""
        passed_over: list[str] = []
        for path in self.all():
            try:
                return path, verify(path), passed_over
            except TrainingError as error:
                passed_over.append(f"passed over {error}")
        return None, 0, passed_over


def read(path: Path) -> Saved:
    """Verify and load one checkpoint; TrainingError says what is wrong with it. Nothing in it is ever executed."""
    step = verify(path)
    return Saved(
        step,
        safetensors.torch.load_file(path / "weights.safetensors"),
        safetensors.torch.load_file(path / "optimizer.safetensors"),
        json.loads((path / "values.json").read_text()),
    )


def verify(path: Path) -> int:
    """The step of a checkpoint that is whole; TrainingError says what is wrong with it."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        checksum = manifest.pop("checksum")
        if _text_checksum(json.dumps(manifest, sort_keys=True)) != checksum:
            raise TrainingError(f"{path}: the manifest is damaged")
        for name, expected in manifest["files"].items():
            if _checksum(path / name) != expected:
                raise TrainingError(f"{path}: {name} is damaged")
        return int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: not a whole checkpoint ({type(error).__name__}: {error})") from None


def _text_checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
