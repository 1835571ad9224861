"""A store holds whole checkpoints or none, as many as the config says; its faults cost no step and are said once."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faulty_store import FaultyStore
from fsspec.registry import known_implementations

from samestep.checkpoint import Checkpoints, Copies, Saved, copies, verify
from samestep.checkpoint.bringing import bring_newest
from samestep.checkpoint.reading import text_checksum
from samestep.config import load_config
from samestep.config.preflight import elsewhere
from samestep.errors import Stopped, UsageError
from samestep.run.folder import RunFolder
from samestep.run.kept_elsewhere import checkpoints_there, steps_there
from samestep.run.store import Store, store_of
from samestep.session import elsewhere as session
from samestep.session.elsewhere import Elsewhere

HOLD_S = 30.0


class Place:
    """A run on a disk, and the store that it is sent to."""

    def __init__(self, path: Path) -> None:
        self.path, self.there = path, path / "there/first"
        self.folder = RunFolder(path / "runs/first")
        self.said: list[str] = []
        self.store = Store(f"faulty://{path}/there", "first")
        self.faults: list[Callable[[str, str], str | None]] = []

    def save(self, step: int, keep: int = 2, best: int | None = None, stays: Callable[[int], bool] | None = None) -> None:
        checkpoints = Checkpoints(self.folder, keep)
        checkpoints.stays = stays or checkpoints.stays
        checkpoints.save(Saved(step, {"w": torch.full((64,), float(step))}, {}, {"best_step": best}))
        self.folder.config.write_text("steps: 9\n")
        self.folder.write_state(status="running", step=step)
        with self.folder.metrics.open("a") as file:
            file.write(f'{{"step": {step}}}\n')

    def copies(self, keep: int = 2, stays: Callable[[int], bool] = lambda step: False, **kwargs: Any) -> Copies:
        return Copies(self.store, self.folder, keep, stays, self.said.append, **kwargs)

    def steps_there(self) -> list[int]:
        """Of those that are whole there, each looked at byte by byte."""
        names = [str(path.relative_to(self.there)) for path in self.there.rglob("*") if path.is_file()]
        steps = steps_there(checkpoints_there(names))
        for step in steps:
            assert verify(self.there / f"checkpoints/step-{step:08d}") == step
        return steps


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    FaultyStore.requests.clear()
    yield Place(tmp_path)
    FaultyStore.fault = staticmethod(lambda verb, path: None)


def send_all(sender: Copies) -> None:
    while not sender.bring_up_to_date():
        pass


def fail(*faults: tuple[str, str, str | Exception], times: int = 1 << 30) -> None:
    """Have the store go wrong at paths that end so: raise, or write half and say so (`cut off`) or not (`half`)."""
    left = [times]

    def fault(verb: str, path: str) -> str | None:
        for wanted, end, how in faults:
            if verb == wanted and path.endswith(end) and left[0] > 0:
                left[0] -= 1
                if isinstance(how, Exception):
                    raise how
                return how
        return None

    FaultyStore.fault = staticmethod(fault)


@pytest.mark.parametrize("how", ["cut off", "half"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "values.json", "manifest.json", "state.json"])
def test_a_checkpoint_is_whole_there_or_absent_wherever_a_send_breaks(place: Place, name: str, how: str) -> None:
    place.save(1)
    sender = place.copies()
    send_all(sender)
    place.save(2)
    fail(("put", name, how), times=1)
    is_seen = how == "cut off" or name != "state.json"  # which has no sum; a folder of this machine gets it by a rename
    if is_seen:
        with pytest.raises(OSError, match=r"connection lost|other bytes"):
            sender.bring_up_to_date()
        if name == "manifest.json":
            assert bring_newest(place.store, RunFolder(place.path / "else"), place.store.files())[0].startswith("passed over")
            assert [path.name for path in (place.path / "else/checkpoints").iterdir()] == ["step-00000001"]
        else:
            assert place.steps_there() == [1]
    send_all(sender)
    assert place.steps_there() == [2, 1]
    assert (place.there / "metrics.jsonl").read_text() == place.folder.metrics.read_text()


def test_the_manifest_goes_last_and_is_not_sent_before_all_else_was_read_back(place: Place) -> None:
    place.save(1)
    (place.folder.path / "sources").mkdir()
    (place.folder.path / "sources/mine.py").write_text("x = 1\n")
    send_all(place.copies())
    requests = [(verb, path.removeprefix(f"{place.there}/")) for verb, path in FaultyStore.requests if verb in ("put", "cat")]
    step = "checkpoints/step-00000001"
    files = ("optimizer.safetensors", "values.json", "weights.safetensors")
    sums = [(verb, f"{step}/{name}") for name in files for verb in ("put", "cat")]
    small = [("put", name) for name in ("config.yaml", "metrics.jsonl", "sources/mine.py", "state.json")]
    marker = [("put", f"{step}/manifest.json"), ("cat", f"{step}/manifest.json")]
    assert requests == [*sums, *small, *marker]


def test_keep_milestones_and_best_hold_there_and_nothing_goes_before_its_successor_stands(place: Place) -> None:
    def stays(step: int) -> bool:
        return step % 4 == 0

    sender = place.copies(keep=1, stays=stays)
    for step in range(1, 8):
        place.save(step, keep=1, best=2 if step > 1 else None, stays=stays)
        send_all(sender)
        assert place.steps_there() == sorted({step, *([2] if step > 1 else []), *([4] if step > 3 else [])}, reverse=True)
    for (verb, path), number in zip(FaultyStore.requests, itertools.count(), strict=False):
        if verb == "rm":
            gone = int(Path(path).parent.name[5:])
            marks = [p for v, p in FaultyStore.requests[:number] if v == "cat" and p.endswith("manifest.json")]
            assert int(Path(marks[-1]).parent.name[5:]) > gone


def test_an_old_one_stays_where_its_successor_could_not_be_sent(place: Place) -> None:
    sender = place.copies(keep=1)
    place.save(1, keep=1)
    send_all(sender)
    place.save(2, keep=1)
    fail(("put", "step-00000002/manifest.json", "half"))
    for _ in range(3):
        with pytest.raises(OSError, match="other bytes"):
            sender.bring_up_to_date()
    assert (place.there / "checkpoints/step-00000001/manifest.json").exists()
    assert not any(verb == "rm" and "step-00000001" in path for verb, path in FaultyStore.requests)


def test_a_store_that_refuses_is_asked_ever_later_and_named_once(place: Place) -> None:
    place.save(1)
    waits: list[float] = []
    asked_to_wait = OSError("busy")
    asked_to_wait.headers = {"Retry-After": "100"}  # type: ignore[attr-defined]
    answers: list[Exception] = [*[ConnectionError("down")] * 8, asked_to_wait]

    def fault(verb: str, path: str) -> str | None:
        if verb == "put" and answers:
            raise answers.pop(0)
        return None

    FaultyStore.fault = staticmethod(fault)
    sender = place.copies(pause=waits.append)
    sender.start()
    while len(place.said) < 2:
        time.sleep(0.01)
    sender.close(HOLD_S)
    assert place.steps_there() == [1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 100]
    assert len(place.said) == 2, place.said
    assert place.said[0].startswith(
        f"WARNING: faulty://{place.path}/there/first: step 1 could not be sent, it gives Connection"
    )
    assert "it takes what it is given again" in place.said[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Access Denied"), "gives PermissionError: Access Denied"),
        (OSError(28, "No space left on device"), "gives OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_store_that_is_forbidden_or_full_is_said_once_and_again_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setattr(copies, "_TRIES_AT_THE_END", 2)
    place.save(1)
    refused = threading.Event()

    def fault(verb: str, path: str) -> str | None:
        if verb == "put":
            if len([path for verb, path in FaultyStore.requests if verb == "find"]) > 4:
                refused.set()
            raise error
        return None

    FaultyStore.fault = staticmethod(fault)
    sender = place.copies(pause=lambda seconds: None)
    sender.start()
    assert refused.wait(HOLD_S)
    sender.close(HOLD_S)
    assert [line.partition(":")[0] for line in place.said] == ["WARNING", "WARNING"], place.said
    assert f"step 1 could not be sent, it {words}; training goes on" in place.said[0]
    assert f"step 1, the newest, was not sent to faulty://{place.path}/there/first" in place.said[1]
    assert words in place.said[1]
    assert "the next start sends it" in place.said[1]


def test_a_slow_store_holds_its_checkpoint_on_the_disk_and_the_end_no_longer_than_there_is_time(place: Place) -> None:
    place.save(1, keep=1)
    arrived, go_on = threading.Event(), threading.Event()

    def fault(verb: str, path: str) -> str | None:
        if verb == "put" and "step-00000001/weights" in path:
            arrived.set()
            go_on.wait(HOLD_S)
            raise ConnectionError("late, and told to nobody")
        return None

    FaultyStore.fault = staticmethod(fault)
    sender = place.copies(keep=1)
    sender.start()
    assert arrived.wait(HOLD_S)
    place.save(2, keep=1, stays=sender.holds)
    sender.stands(2)
    assert Checkpoints(place.folder, 1).steps() == [2, 1]
    sender.close(0.0)
    assert place.said == [
        f"WARNING: step 2, the newest, was not sent to faulty://{place.path}/there/first (the time was over); "
        f"it stands in {place.folder.path}, and the next start sends it"
    ]
    go_on.set()
    assert sender._thread is not None
    sender._thread.join(HOLD_S)
    assert not sender._thread.is_alive()
    assert len(place.said) == 1


def test_the_end_waits_for_what_is_being_sent(place: Place) -> None:
    place.save(1)
    sender = place.copies()
    sender.start()
    place.folder.write_state(status="done")
    sender.close(HOLD_S)
    assert (place.steps_there(), place.said) == ([1], [])
    assert json.loads((place.there / "state.json").read_text())["status"] == "done"


def test_nothing_is_sent_of_a_run_that_has_saved_nothing(place: Place) -> None:
    place.folder.create()
    place.folder.write_state(status="running")
    sender = place.copies()
    send_all(sender)
    assert [verb for verb, _ in FaultyStore.requests] == ["find"]


def test_a_start_on_another_disk_ends_the_sending(place: Place) -> None:
    place.save(1)
    (place.there / "starts").mkdir(parents=True)
    (place.there / "starts/0002.json").write_text("{}")
    place.folder.continue_start(1)
    sender = place.copies()
    sender.start()
    sender.close(HOLD_S)
    assert place.steps_there() == []
    assert "start 2, on another disk, has taken this run over; nothing more is sent" in place.said[0]


def test_a_checkpoint_that_is_damaged_on_the_disk_is_not_sent(place: Place) -> None:
    place.save(1)
    place.save(2)
    (place.folder.checkpoint(2) / "weights.safetensors").write_bytes(b"damaged")
    send_all(place.copies())
    assert place.steps_there() == [1]


def test_another_checkpoint_of_the_same_step_takes_the_place_of_the_one_there(place: Place) -> None:
    place.save(1)
    send_all(place.copies())
    other = Place(place.path / "other")
    other.store = place.store
    other.save(1, best=1)
    send_all(other.copies())
    assert place.steps_there() == [1]
    assert json.loads((place.there / "checkpoints/step-00000001/values.json").read_text())["best_step"] == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "values.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_one_is_passed_over_for_the_one_before(place: Place, name: str, damage: str) -> None:
    for step in (1, 2, 3):
        place.save(step)
    send_all(place.copies())
    file = place.there / "checkpoints/step-00000003" / name
    content = file.read_bytes()
    file.write_bytes({"flipped": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-2], "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    here = RunFolder(place.path / "elsewhere/first")
    start = Elsewhere(f"faulty://{place.path}/there", here, has_checkpoints=False)
    notes = start.bring_newest()
    assert Checkpoints(here, 2).newest()[1] == 2
    assert [path.name for path in here.checkpoints.iterdir()] == ["step-00000002"]
    if (name, damage) != ("manifest.json", "gone"):  # then it is absent there, and nothing to be told
        assert notes[0].startswith(f"passed over faulty://{place.path}/there/first/checkpoints/step-00000003: ")
    assert here.read_state()["step"] == 3


def test_a_name_that_leads_out_of_the_folder_is_not_brought(place: Place) -> None:
    place.save(1)
    send_all(place.copies())
    manifest = place.there / "checkpoints/step-00000001/manifest.json"
    whole = json.loads(manifest.read_text())
    del whole["checksum"]
    whole["files"]["../../../outside"] = "0"
    whole["checksum"] = text_checksum(whole)
    manifest.write_text(json.dumps(whole))
    notes = bring_newest(place.store, RunFolder(place.path / "else"), place.store.files())
    assert "names no file of its own" in notes[0]


def test_an_unreadable_store_ends_a_start_that_has_nothing_and_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samestep.session.elsewhere.PATIENCE_S", 0.0)
    address = f"faulty://{place.path}/there"
    fail(("find", "", PermissionError("Access Denied")))
    with pytest.raises(UsageError, match=r"gives PermissionError: Access Denied, and no checkpoint is here; mend that, or "):
        Elsewhere(address, place.folder, has_checkpoints=False)
    assert Elsewhere(address, place.folder, has_checkpoints=True).notes[0].endswith("; the run goes on from what is here")
    fail(("put", "", PermissionError("Access Denied")))
    with pytest.raises(UsageError, match=r"checkpoint.copy: faulty://.*/there cannot be written, it gives PermissionError"):
        Elsewhere(address, place.folder, has_checkpoints=False)


CONFIG = """
task: regression
global_batch_size: 4
micro_batch_size: 4
steps: 1
optimizer: {name: sgd, lr: 0.1}
"""


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("s4://bucket/runs", "checkpoint.copy: s4://bucket/runs: Protocol not known: s4; write a path, https://, s3://"),
        ("none://bucket/runs", "checkpoint.copy: none://bucket/runs cannot be opened here: .*; write pip install nothing"),
        ("ftp://me:secret@host/runs", "checkpoint.copy: found a password, which would be kept"),
        ("{here}/runs", "checkpoint.copy: found .*/runs, the folder of run folders itself; write another place"),
        ("file://{here}/runs/", "checkpoint.copy: found .*/runs/, the folder of run folders itself; write another place"),
        ("{here}/a-file/runs", "checkpoint.copy: .*/a-file/runs cannot be written, it gives"),
    ],
)  # fmt: skip
def test_a_bad_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, line: str) -> None:
    known = {"class": "nothing_here.NoFileSystem", "err": "Install nothing to access none"}
    monkeypatch.setitem(known_implementations, "none", known)
    (tmp_path / "a-file").touch()
    (tmp_path / "c.yaml").write_text(CONFIG)
    place = address.replace("{here}", str(tmp_path))
    with pytest.raises(UsageError, match=line) as caught:
        store_of(place, "first", str(tmp_path / "runs")).refuse_what_cannot_be_written(0.0)
    assert len(caught.value.lines) == 1
    config, _ = load_config(tmp_path / "c.yaml", (f"checkpoint.copy={place}", f"runs={tmp_path}/runs"))
    (told,) = elsewhere(config)
    assert told.level == "error"
    assert re.match(line, f"{told.what}: {told.text}")


def test_a_good_address_is_told_by_check(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config, _ = load_config(tmp_path / "c.yaml", (f"checkpoint.copy={tmp_path}/there",))
    (told,) = elsewhere(config)
    assert (told.level, told.text) == ("ok", f"{tmp_path}/there can be written")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_stop_waits_no_longer_than_whoever_asked_for_it() -> None:
    def waited(noticed_ago: float | None = None, left: float | None = None, by: BaseException | None = None) -> float:
        now, clock = time.monotonic(), time.time()
        stop = SimpleNamespace(noticed_at=None if noticed_ago is None else now - noticed_ago)
        runtime = SimpleNamespace(ends_at=None if left is None else clock + left)
        return round(session.patience_s(stop, runtime, by))  # type: ignore[arg-type]

    assert waited() == waited(by=Stopped("")) == 600
    assert waited(by=RuntimeError()) == 20
    assert waited(noticed_ago=10.0) == 15
    assert waited(noticed_ago=40.0) == 0
    assert waited(left=60.0) == 35
