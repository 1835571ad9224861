"""What a terminal shows of a run: as much as has room, the most needed first; and what the rate counts is said."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from built_here import Noting, built
from torch import nn

from samestep.loop import train
from samestep.task import Batch, Ratio, Task
from samestep.tracking.bar import Bar, bar_line

WORDS = ["126/300", "loss 2.3415", "01:10 left", "eval_loss 2.4512", "eval_accuracy 0.9310", "52,413 bytes/s", "3.2 steps/s"]


@pytest.mark.parametrize("words", [WORDS, ["0/9", "starting"], ["100000/100000", "evaluating", *WORDS[1:]]])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_at_any_width_the_least_needed_is_missing_and_the_bar_is_wide_or_absent(words: list[str], ascii_only: bool) -> None:
    kept_before = 0
    for width in range(1, 251):
        before, drawn, behind = bar_line(width, 0.42, words, ascii_only)
        assert len(before + drawn + behind) <= width
        assert not drawn or 10 <= len(drawn) <= 40
        text = f"{before.removesuffix(' |')}  {behind.removeprefix('| ')}".strip() if drawn else before
        kept = next(number for number in range(len(words), -1, -1) if text.startswith("  ".join(words[:number])))
        assert text == "  ".join(words[:kept]) or width < len(words[0])
        assert kept >= kept_before
        kept_before = kept
    assert kept_before == len(words)


@pytest.mark.parametrize(("width", "kept"), [(30, 2), (60, 3), (80, 4), (100, 6), (200, 7)])
def test_what_has_room_on_usual_terminals(width: int, kept: int) -> None:
    before, drawn, behind = bar_line(width, 0.5, WORDS, ascii_only=False)
    assert behind.removeprefix("| ") == "  ".join(WORDS[1:kept]) or before == "  ".join(WORDS[:kept])
    assert bool(drawn) == (width >= 60)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Standard error on a terminal; a call makes it so wide and returns what has been shown."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def shown(columns: int) -> str:
        monkeypatch.setattr("sys.stderr", stream)  # in the test itself: pytest has its own before
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        try:
            return os.read(master, 65536).decode()
        except BlockingIOError:
            return ""

    with os.fdopen(slave, "w") as stream:
        yield shown
    os.close(master)


def test_the_bar_follows_the_terminals_width_and_says_what_keeps_it(terminal: Callable[[int], str]) -> None:
    terminal(200)
    with Bar(300, 0, "bytes") as bar:
        first = terminal(200).split("\r")[-1]
        assert re.fullmatch(r"0/300 \|\033\[33m {40}\033\[0m\| starting *", first)
        bar.doing("running")
        for step in (10, 20):
            bar.step({"step": step, "loss": 2.5, "step_s": 0.25, "bytes_per_s": 4096.4})
        bar.evaluated(["eval_loss 2.4000"])
        text = terminal(60)
        last = text.split("\r")[-1]
        assert re.fullmatch(
            r"20/300 \|\033\[36m█+. +\033\[0m\| loss 2\.5000  \S+ left  eval_loss 2\.4000  4,096 bytes/s  4\.0 steps/s *", last
        )
        bar.doing("evaluating")
        last = terminal(60).split("\r")[-1].rstrip()
        assert len(re.sub(r"\033\[\d+m", "", last)) < 60
        assert "| evaluating  loss 2.5000" in last


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_there_is_no_colour_where_it_is_not_wanted(
    terminal: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    terminal(80)
    with Bar(300, 0, "bytes"):
        text = terminal(80)
        assert "starting" in text
        assert "\033[3" not in text


class Three(Task):
    """Each of its rows weighs as much as is asked for."""

    weight: float = 3.0

    def data(self, split: str) -> dict[str, np.ndarray] | None:
        return {"x": np.ones((20, 2), dtype=np.float32)} if split == "train" else None

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        return model(batch["x"]).sum(), torch.tensor(self.weight * len(batch["x"]))


class Named(Three):
    unit = "thirds"


class NamedAsTheDefault(Three):
    unit = "samples"


def notes(task: Task) -> list[str]:
    tracker = Noting()
    train(built(tracker, "global_batch_size=16", "micro_batch_size=8", "steps=4", task=task))
    return [line for line in tracker.lines if "samples/s" in line]


def test_a_rate_that_counts_no_rows_is_explained_once_where_no_unit_names_it() -> None:
    assert notes(Three()) == [
        "note: samples/s counts the weight that loss returns, which came to 48 in step 1 of 16 rows; "
        'name what it counts in the task, such as unit = "tokens"'
    ]
    for task in (Three(weight=1.0), Named(), NamedAsTheDefault()):  # an epoch's last step has four rows
        assert notes(task) == []
