"""What `samestep check` and `submit` know before a model is built: shares of a step, a lost node, room on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from samestep.config import Config, preflight
from samestep.config.preflight import room, shares, sizes_asked
from samestep.config.reading import validated
from samestep.errors import UsageError


def config(micro_batches: int) -> Config:
    sizes = {"global_batch_size": micro_batches, "micro_batch_size": 1}
    return validated({"task": "regression", **sizes, "steps": 1, "optimizer": {"name": "sgd", "lr": 0.1}})


@pytest.mark.parametrize(
    ("micro_batches", "processes", "nodes", "words"),
    [
        (48, "12", 3, "of 3 lost, 8 processes go on: 6 micro-batches each instead of 4, a step takes 1.5 times as long"),
        (48, None, 3, "of 3 lost, 8 processes go on: 6 micro-batches each instead of 4, a step takes 1.5 times as long"),
        (12, "12", None, "of 3 lost, 8 processes go on: 2 micro-batches each instead of 1, a step takes 2 times as long"),
        (9, "8", None, "of 2 lost, 4 processes go on: 3 micro-batches each instead of 2, a step takes 1.5 times as long"),
        (13, "11", 11, "of 11 lost, 10 processes go on: 2 micro-batches each instead of 2, a step takes as long as before"),
    ],
)
def test_what_a_lost_node_costs(micro_batches: int, processes: str | None, nodes: int | None, words: str) -> None:
    lines = shares(config(micro_batches), sizes_asked(processes, nodes, here=4), nodes, here=4)
    assert [line.text for line in lines if line.what == "a node"] == [words]


def test_one_machine_has_no_node_to_lose_and_too_many_processes_are_an_error() -> None:
    lines = shares(config(8), [4, 9], None, here=4)
    assert [(line.level, line.what) for line in lines] == [("ok", "processes"), ("error", "processes")]
    assert lines[1].text == "found 9, and a step has 8 leaves to share; write 8 or fewer, or a smaller micro_batch_size"


def test_a_folder_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, words = room(str(tmp_path / "not" / "there"))
    assert free > 0
    assert f"free in {tmp_path}" in words
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file can't be written \(Not a directory\); write runs=FOLDER"):
        room(str(tmp_path / "file" / "runs"))
    full = SimpleNamespace(f_files=100, f_favail=0, f_bavail=10, f_frsize=512)
    monkeypatch.setattr(os, "statvfs", lambda folder: full)
    with pytest.raises(UsageError, match="has no room for another file"):
        room(str(tmp_path))


def test_the_word_of_the_site_s_quota_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "quota"
    tool.write_text("#!/bin/sh\necho 'Disk quotas for user me:'\necho '  /home 9G 10G'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert preflight.room(str(tmp_path))[1].endswith("; quota says: Disk quotas for user me: /home 9G 10G")
