"""A checkpoint is whole or it is passed over, and holds all that training goes on from."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import xxhash
from torch import nn

from samestep.checkpoint import (
    DUE,
    Checkpoints,
    Ending,
    NoCopies,
    Saved,
    Saver,
    capture,
    checksum,
    files,
    read,
    read_chosen,
    reading,
    refuse_unsavable,
    restore,
    weights_hash,
)
from samestep.checkpoint.tensors import DTYPES, pieces
from samestep.config import Checkpoint
from samestep.errors import Overtaken, TrainingError, UsageError
from samestep.run.folder import RunFolder


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.b(self.a(x)))
        return out


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, values: dict[str, Any] | None = None) -> Path:
    model, optimizer = trained(step)
    return Checkpoints(RunFolder(folder), keep=2).save(capture(step, model, optimizer, None, values or {}))


def test_what_was_saved_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = save(tmp_path, 3, {"best": 1.5})
    saved = read(path)
    assert saved.step == 3
    assert saved.values["best"] == 1.5
    assert sorted(saved.weights) == ["a.weight", "norm.bias", "norm.num_batches_tracked", "norm.running_mean",
                                   "norm.running_var", "norm.weight"]  # fmt: skip
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    restore(saved, model, optimizer)
    assert model.a.weight is model.b.weight
    original, original_optimizer = trained(3)
    assert weights_hash(model) == weights_hash(original)
    torch.manual_seed(5)
    x = torch.randn(4, 3)
    for m, o in ((model, optimizer), (original, original_optimizer)):
        o.zero_grad()
        m(x).square().sum().backward()
        o.step()
    assert weights_hash(model) == weights_hash(original)


def test_old_ones_go_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoints = Checkpoints(RunFolder(tmp_path), keep=2)
    assert [path.name for path in checkpoints.all()] == ["step-00000003", "step-00000002"]
    assert checkpoints.newest()[1] == 3


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "values.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 50)):
        file.write_bytes(bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :]))
        _, step, passed_over = Checkpoints(RunFolder(tmp_path), keep=2).newest()
        assert step == 1, place
        assert len(passed_over) == 1
    file.unlink()
    assert Checkpoints(RunFolder(tmp_path), keep=2).newest()[1] == 1


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    path = save(tmp_path, 1)
    hostile = pickle.dumps(Hostile())
    (path / "weights.safetensors").write_bytes(hostile)
    with pytest.raises(TrainingError, match=r"weights\.safetensors is damaged"):
        read(path)
    forge(path, "weights.safetensors", hostile)
    with pytest.raises(TrainingError, match="not a whole checkpoint"):
        read(path)
    assert not (tmp_path / "executed").exists()


def forge(path: Path, name: str, content: bytes) -> None:
    """Put a file into a checkpoint, by somebody who knows how to write a right checksum."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["files"][name] = xxhash.xxh3_128_hexdigest(content)
    manifest["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"no json",
        b"[" * 100_000,
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F1", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [0, 999999999999999999999999], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}',
    ],
)
def test_a_header_that_describes_nothing_is_refused(tmp_path: Path, header: bytes) -> None:
    path = save(tmp_path, 1)
    for length in (len(header), 1 << 62):
        forge(path, "weights.safetensors", length.to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(TrainingError, match="not a whole checkpoint"):
            read(path)


def test_other_tools_read_the_weights_and_theirs_are_read(tmp_path: Path) -> None:
    tensors = {f"{dtype}": torch.arange(3).to(dtype) for dtype in DTYPES}  # the odd sizes leave some misaligned
    tensors |= {"none": torch.empty(0, 5), "one": torch.tensor(1.5), "bool": torch.tensor([True])}
    path = save(tmp_path, 1)
    for content in (b"".join(pieces(tensors)), safetensors.torch.save(tensors, {"format": "pt"})):
        forge(path, "weights.safetensors", content)
        for found in (read(path).weights, safetensors.torch.load(content)):
            assert found.keys() == tensors.keys()
            assert all(found[name].dtype == tensor.dtype and found[name].equal(tensor) for name, tensor in tensors.items())


def test_the_checkpoint_that_rank_0_chose_is_waited_for_and_no_other_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    chosen = checksum(path)
    aside = path.rename(tmp_path / "not shown yet")
    threading.Timer(0.3, lambda: aside.rename(path)).start()
    assert read_chosen(path, chosen).step == 1
    monkeypatch.setattr(reading, "_SHOWN_LATE_S", 0.0)
    with pytest.raises(TrainingError, match="is the run folder shared"):
        read_chosen(path, "another")


def test_a_disk_that_fills_in_the_middle_of_a_save_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(tmp_path, 1)
    write, written = files._write, []

    def full(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        if path.name == "optimizer.safetensors":
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path.name)
        return write(path, pieces)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert written == ["weights.safetensors"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    monkeypatch.undo()
    save(tmp_path, 2)
    assert Checkpoints(RunFolder(tmp_path), keep=2).newest()[1] == 2


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit the model") as caught:
        restore(read(save(tmp_path, 1)), nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def test_a_save_that_breaks_in_an_unforeseen_way_never_counts(tmp_path: Path) -> None:
    said: list[str] = []

    def unsavable(step: int) -> Saved:
        return Saved(step, {}, {}, {"a set": {1}})

    checkpoints = Checkpoints(RunFolder(tmp_path), keep=2)
    saver = Saver(Checkpoint(), checkpoints, unsavable, lambda saved, seconds: None, said.append)
    with pytest.raises(TrainingError, match=r"step 3 could not be saved \(TypeError: Object of type set"):
        saver.save_now(3, patience_s=0)
    assert "could not be saved" in said[0]


def test_a_damaged_newer_one_does_not_cost_the_one_just_written(tmp_path: Path) -> None:
    (save(tmp_path, 9) / "values.json").write_text("damaged")
    checkpoints = Checkpoints(RunFolder(tmp_path), keep=1)
    for step in (2, 4):
        model, optimizer = trained(step)
        checkpoints.save(capture(step, model, optimizer, None, {}))
        assert checkpoints.newest()[1] == step


def test_what_a_killed_save_left_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over = tmp_path / "checkpoints/.step-00000001.start-7.123.tmp"
    left_over.mkdir(parents=True)

    def disk_usage(folder: Path) -> Any:
        return SimpleNamespace(free=0 if left_over.exists() else 1 << 40)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    save(tmp_path, 2)
    assert Checkpoints(RunFolder(tmp_path), keep=1).newest()[1] == 2


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def stale(path: Path, from_disk: bool) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(reading, "_checksum", stale)
    with pytest.raises(TrainingError, match=r"step-00000002: cannot be read \(Stale file handle\)"):
        Checkpoints(RunFolder(tmp_path), keep=2).newest()


def test_what_no_checkpoint_could_hold_is_refused_at_the_start() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["note"] = object()
    with pytest.raises(UsageError) as caught:
        refuse_unsavable(model, optimizer)
    assert [line.split(",")[0].split(";")[0] for line in caught.value.lines] == [
        "task: 'phase' is torch.complex128",
        "task: the optimizer's param_groups.0.note is a object",
    ]


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    return done


def test_every_file_is_durable_before_the_checkpoint_has_its_name(tmp_path: Path, durable: list[str]) -> None:
    save(tmp_path, 1)
    temporary = f".step-00000001.start-0.{os.getpid()}.tmp"
    files = ["weights.safetensors", "optimizer.safetensors", "values.json", "manifest.json"]
    assert durable == [
        *(f"sync {name}" for name in (*files, temporary)),
        f"rename {temporary} step-00000001",
        "sync checkpoints",
    ]


def test_state_json_is_durable_before_it_has_its_name(tmp_path: Path, durable: list[str]) -> None:
    RunFolder(tmp_path).write_state(status="running")
    temporary = f".state.json.{os.getpid()}.tmp"
    assert durable == [f"sync {temporary}", f"rename {temporary} state.json", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("fault", ["no room", "another byte on the disk"])
def test_an_only_checkpoint_stays_until_the_next_is_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    first, write = save(tmp_path, 1), files._write

    def faulty(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        if fault == "no room":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        found = write(path, pieces)
        if path.name == "weights.safetensors":
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return found

    monkeypatch.setattr(files, "_write", faulty)
    model, optimizer = trained(2)
    checkpoints = Checkpoints(RunFolder(tmp_path), keep=1)
    with pytest.raises((OSError, TrainingError), match=r"No space left|step-00000002: weights\.safetensors is damaged"):
        checkpoints.save(capture(2, model, optimizer, None, {}))
    assert checkpoints.newest()[0] == first


@pytest.mark.parametrize("moment", ["before the save", "in the middle of it"])
def test_a_start_that_was_overtaken_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    folder, write = RunFolder(tmp_path), files._write
    folder.begin_start(1, {})
    later = tmp_path / "starts/0002.json"

    def slow(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        later.touch()
        return write(path, pieces)

    monkeypatch.setattr(files, "_write", slow)
    if moment == "before the save":
        later.touch()
    model, optimizer = trained(1)
    with pytest.raises(Overtaken, match="start 2 has taken this run over"):
        Checkpoints(folder, keep=1).save(capture(1, model, optimizer, None, {}))
    assert not list(tmp_path.glob("checkpoints/*"))
    with pytest.raises(Overtaken):
        folder.write_state(status="done")
    assert not folder.state.exists()


def test_milestones_are_saved_at_their_own_step_and_stay(tmp_path: Path) -> None:
    """Also where the save before is still being written, of which no other step is held."""
    going_on = threading.Event()

    def slow(step: int) -> Saved:
        model, optimizer = trained(step)
        return capture(step, model, optimizer, None, {})

    class Slow(Checkpoints):
        def save(self, saved: Saved) -> Path:
            if saved.step == 9:
                assert going_on.wait(20)
            return super().save(saved)

    settings, checkpoints = Checkpoint(every=3, keep=1, milestones=5, minutes=None), Slow(RunFolder(tmp_path), keep=1)
    checkpoints.stays = settings.is_milestone
    saver = Saver(settings, checkpoints, slow, lambda saved, seconds: None, print)
    due = []
    for step in range(1, 14):
        if saver.is_due(step):
            due.append(step)
            if step == 10:
                going_on.set()
            saver.save(step)
            if step != 9:
                saver.wait()
    assert due == [3, 5, 6, 9, 10, 12]
    assert sorted(path.name for path in checkpoints.all()) == ["step-00000005", "step-00000010", "step-00000012"]


def test_what_is_due_for_all_travels_below_a_signal() -> None:
    """Ranks act on the largest flag: one that is asked to stop outbids one whose save is due, and saves too."""
    asked: Any = SimpleNamespace(asked=lambda needed_s: 0)
    watch: Any = SimpleNamespace(current_step=4, slow_step_s=0.0)
    ending = Ending(asked, watch)
    assert ending.flag() == 0
    saver: Any = SimpleNamespace(
        is_due_for_all=lambda step: step == 5, is_due=lambda step: False, longest_s=0.0, copies=NoCopies()
    )
    ending.saver = saver
    assert ending.flag() == DUE
    for number in (signal.SIGHUP, signal.SIGTERM):  # the first of which is 1
        asked.asked = lambda needed_s, number=number: number
        assert ending.flag() > DUE
        assert ending.asked() > DUE
