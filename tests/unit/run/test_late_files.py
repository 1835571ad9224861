"""Another machine's files, seen late as a client of a network file system sees them."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samestep.errors import Overtaken
from samestep.run.folder import RunFolder


class Client:
    """One machine's view: a name that another machine made stays unseen until this one changes the folder (nfs(5), "Directory
    entry caching": what the answer to a change says of the folder discards what the client has cached of it).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._hidden: set[Path] = set()
        for name in ("stat", "mkdir", "open", "scandir", "listdir"):
            monkeypatch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._open_file(io.open))
        monkeypatch.setattr(builtins, "open", io.open)

    @contextlib.contextmanager
    def elsewhere(self, root: Path) -> Iterator[None]:
        """What is made below a folder while this lasts is another machine's doing."""
        hidden, self._hidden = self._hidden, set()
        before = set(root.rglob("*"))
        yield
        self._hidden = hidden | (set(root.rglob("*")) - before)

    def _sees(self, path: Any) -> bool:
        return isinstance(path, int) or not self._hidden & {_path(path), *_path(path).parents}

    def _changes(self, path: Any) -> None:
        self._hidden = {hidden for hidden in self._hidden if hidden.parent != _path(path).parent}

    def _looking(self, call: Any) -> Any:
        def look(path: Any = ".", *words: Any, **named: Any) -> Any:
            if not self._sees(path):
                raise FileNotFoundError(2, "not seen yet", str(path))
            return call(path, *words, **named)

        return look

    _stat = _looking

    def _listing(self, call: Any, name: Any) -> Any:
        def list_(path: Any = ".") -> Any:
            found = call(path)
            return (
                found
                if isinstance(path, int)
                else _Listing([each for each in found if self._sees(_path(path) / os.fsdecode(name(each)))])
            )

        return list_

    def _scandir(self, call: Any) -> Any:
        return self._listing(call, lambda entry: entry.name)

    def _listdir(self, call: Any) -> Any:
        return self._listing(call, lambda name: name)

    def _mkdir(self, call: Any) -> Any:
        def make(path: Any, *words: Any, **named: Any) -> Any:
            self._changes(path)
            return call(path, *words, **named)

        return make

    def _open(self, call: Any) -> Any:
        def open_(path: Any, flags: int, *words: Any, **named: Any) -> Any:
            if flags & os.O_CREAT:
                self._changes(path)
            return self._looking(call)(path, flags, *words, **named)

        return open_

    def _open_file(self, call: Any) -> Any:
        def open_(path: Any, mode: str = "r", *words: Any, **named: Any) -> Any:
            if set(mode) & set("wxa") and not isinstance(path, int):
                self._changes(path)
            return self._looking(call)(path, mode, *words, **named)

        return open_


def _path(path: Any) -> Path:
    return Path(os.fsdecode(path))


class _Listing(list[Any]):
    """What scandir gives: to be gone through, or held open by `with`."""

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(monkeypatch)


def begun(path: Path, number: int) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    folder.begin_start(number, {})
    return folder


def test_a_start_that_was_cut_off_sees_at_once_that_another_has_taken_over(client: Client, tmp_path: Path) -> None:
    cut_off = begun(tmp_path / "run", 1)
    with client.elsewhere(tmp_path):
        begun(tmp_path / "run", 2)
    assert not (cut_off.starts / "0002.json").exists()
    with pytest.raises(Overtaken, match="start 2 has taken this run over"):
        cut_off.write_state(status="running")


def test_who_takes_a_run_sees_its_starts_and_checkpoints(client: Client, tmp_path: Path) -> None:
    ours = begun(tmp_path / "run", 1)
    ours.checkpoints.mkdir()
    with client.elsewhere(tmp_path):
        begun(tmp_path / "run", 2).write_state(status="stopped")
        (ours.checkpoints / "step-00000040").mkdir()
    later = RunFolder(tmp_path / "run")
    assert later.next_start() == 2
    later.take("here")
    assert later.next_start() == 3
    assert later.read_state()["status"] == "stopped"
    assert [path.name for path in later.checkpoints.glob("step-*")] == ["step-00000040"]
    later.release()
