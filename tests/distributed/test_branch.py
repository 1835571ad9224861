"""A branch goes on from another run's checkpoint: without a change it is that run to the bit, through kills and at any size."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks

from samestep.run.metric_rows import timeless

TASK = """
import os, signal

import torch
import samestep
from samestep import Task


class Mine(Task):
    width: int = 12
    rate: float = 0.2
    shift: float = 0.0

    def data(self, split):
        x = torch.linspace(-3, 3, 100 if split == "train" else 20).unsqueeze(1) + self.shift
        return {"x": x, "y": x.sin()}

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Linear(1, self.width), torch.nn.BatchNorm1d(self.width), torch.nn.Tanh(), torch.nn.Dropout(self.rate),
            torch.nn.Linear(self.width, 1))

    def loss(self, model, batch):
        if str(samestep.step()) == os.environ.get("DIES_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        errors = model(batch["x"]) - batch["y"]
        return errors.square().sum(), errors.numel()
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 24
micro_batch_size: 4
steps: 12
optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.1}
evaluate: {every: 3}
checkpoint: {every: 2, keep: 1, milestones: 4, best: loss, background: false, minutes: null}
track: {every: 1, wandb: 'off'}
"""


class Place:
    """A folder with a run `first` of 12 steps in it."""

    def __init__(self, path: Path) -> None:
        self.path, self._ranks = path, Ranks()
        (path / "mine.py").write_text(TASK)
        (path / "mine.yaml").write_text(CONFIG)

    def samestep(self, command: str, *words: str, size: int = 1, code: int = 0, **env: str) -> str:
        job = {"folder": str(self.path), "name": "said", "world_size": size, "command": command, "words": words, "env": env}
        answer = self._ranks.ask(job)
        assert code in answer["codes"], answer["said"]
        return "".join(answer["said"][0])

    def metrics(self, run: str) -> list[dict[str, Any]]:
        lines = (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [timeless(json.loads(line)) for line in lines]

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "runs" / run / "state.json").read_text())
        return found

    def checkpoints(self, run: str) -> list[int]:
        return sorted(int(path.name[5:]) for path in (self.path / "runs" / run / "checkpoints").glob("step-*"))

    def values(self, run: str, step: int) -> dict[str, Any]:
        path = self.path / f"runs/{run}/checkpoints/step-{step:08d}/values.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return {**found, "rows": [timeless(row) for row in found["rows"]]}

    def close(self) -> None:
        self._ranks.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("branch"))
    made.samestep("train", "mine.yaml", "--run", "first", size=2)
    yield made
    made.close()


def test_milestones_stay(place: Place) -> None:
    assert {4, 8, 12} <= set(place.checkpoints("first")) <= {4, 8, 12, place.values("first", 12)["best_step"]}


def test_a_branch_without_a_change_is_its_parent_to_the_bit_and_costs_nothing(place: Place) -> None:
    said = place.samestep("branch", "first", "--step", "4", "--run", "same", "--later")
    assert said.startswith(
        "same branches from first after step 4\n  nothing else is changed\nsamestep launch runs/same --run same"
    )
    files = [place.path / f"runs/{run}/checkpoints/step-00000004/optimizer.safetensors" for run in ("first", "same")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    first, same = (stat.S_IMODE((place.path / "runs" / run).stat().st_mode) for run in ("first", "same"))
    assert (first, same) == (0o700, 0o700)  # nobody else's, as any run's folder
    assert place.metrics("same") == [row for row in place.metrics("first") if row["step"] <= 4]
    place.samestep("train", "runs/same", "--run", "same", size=3)
    assert place.metrics("same") == place.metrics("first")
    assert place.state("same")["weights"] == place.state("first")["weights"]
    assert place.state("same")["restarts"] == 0
    assert place.values("same", 12) == place.values("first", 12)
    assert {4, 8, 12} <= set(place.checkpoints("same"))
    diffed = place.samestep("diff", "first", "same")
    assert "same is a branch of the other, from step 4 on" in diffed
    assert "same ← first@4" in place.samestep("status")
    assert "first, after step 4" in (place.path / place.samestep("report", "same").strip()).read_text()


def test_a_branch_of_a_branch_through_a_kill_and_at_other_sizes(place: Place) -> None:
    changes = ("optimizer.lr=3e-3", "optimizer.weight_decay=0.3", "clip=0.5", "steps=16")
    line = ("first", "--step", "4", "--run", "child", "--processes", "1", *changes)
    said = place.samestep("branch", *line, code=-9, DIES_AT="7")
    assert "  optimizer.weight_decay: 0.1 → 0.3; from the next step on; its state is taken over\n" in said
    assert place.state("child")["status"] == "running"
    place.samestep("train", "runs/child", "--run", "child", "processes=null", size=2)
    place.samestep("branch", "first", "--step", "4", "--run", "unbroken", "--processes", "1", *changes)
    assert place.metrics("child") == place.metrics("unbroken")
    assert place.state("child")["weights"] == place.state("unbroken")["weights"] != place.state("first")["weights"]
    groups = dict(dict(place.values("child", 16)["optimizer"]["dict"])["param_groups"]["list"][0]["dict"])
    assert (groups["weight_decay"], groups["lr"]) == (0.3, 3e-3)
    assert [row["lr"] for row in place.metrics("child") if "lr" in row] == [1e-2] * 4 + [3e-3] * 12

    place.samestep("branch", "child", "--step", "8", "--run", "grandchild", "--later")
    place.samestep("train", "runs/grandchild", "--run", "grandchild", size=3)
    assert place.metrics("grandchild") == place.metrics("child")
    assert place.state("grandchild")["weights"] == place.state("child")["weights"]
    replayed = place.samestep("replay", "grandchild", "--step", "10")
    assert "replaying from step 8 to step 10" in replayed
    assert "step: found 8; up to step 8 it is child that was trained" in place.samestep(
        "replay", "grandchild", "--step", "8", code=2
    )


def test_a_rate_on_a_plateau_goes_on_over_a_branch_and_follows_its_own_patience(place: Place) -> None:
    def rates(run: str) -> list[float]:
        return [row["lr"] for row in place.metrics(run) if "lr" in row]

    falling = ("schedule={name: plateau, factor: 0.5, min_delta: 9, patience: 0}", "evaluate.every=2")
    place.samestep("branch", "first", "--step", "4", "--run", "falling", "--processes", "1", *falling)
    assert rates("falling") == [1e-2] * 6 + [1e-2] * 2 + [0.5e-2] * 2 + [0.25e-2] * 2
    place.samestep("branch", "falling", "--step", "8", "--run", "fallen", "--processes", "2")
    assert place.metrics("fallen") == place.metrics("falling")
    assert "replaying from step 8 to step 12" in place.samestep("replay", "fallen", "--step", "12")
    place.samestep("branch", "falling", "--step", "8", "--run", "patient", "--processes", "1", "schedule.patience=1")
    assert rates("patient")[8:] == [1e-2] * 2 + [0.5e-2] * 2


@pytest.mark.parametrize(
    "change",
    ["seed=1", "with.shift=0.5", "micro_batch_size=8", "global_batch_size=48", "optimizer.name=sgd", "schedule=linear"],
)
def test_what_may_change_does_and_nothing_else(place: Place, change: str) -> None:
    name = change.partition("=")[0]
    arguments = ["optimizer.momentum=0.9"] if name == "optimizer.name" else []
    place.samestep("branch", "first", "--step", "8", "--run", name, "--processes", "1", change, *arguments)
    assert place.metrics(name)[:10] == [row for row in place.metrics("first") if row["step"] <= 8]
    assert place.state(name)["step"] == 12
    assert place.state(name)["weights"] != place.state("first")["weights"]
    assert [row["step"] for row in place.metrics(name) if "loss" in row] == list(range(1, 13))
    place.samestep("train", "runs/" + name, "--run", name)  # it is done, and says so


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("first", "--step", "5", "--run", "x"), "--step: found 5; first has checkpoints of steps 4, 8"),
        (("firsd", "--step", "4", "--run", "x"), "firsd: found no such run; did you mean first?"),
        (("first", "--step", "4", "--run", "first"), "is there, and no branch of first at step 4"),
        (("first", "--step", "8", "--run", "x", "steps=8"), "steps: found 8, and the branch begins after step 8; write more"),
        (("first", "--step", "8", "--run", "x", "init=first"), "init: found 'first'; a branch has the weights of its parent"),
        (("first", "--step", "8", "--run", "x", "stesp=9"), "stesp: unknown key; did you mean steps?"),
        (("first", "--step", "8", "--run", "x", "with.width=9"), "the checkpoint does not fit the model"),
        (("first", "--step", "8", "--run", "x/y"), "--run: found 'x/y'; write a name without a slash"),
    ],
)
def test_what_may_not_change_is_one_line_and_leaves_nothing(place: Place, words: tuple[str, ...], told: str) -> None:
    before = sorted((place.path / "runs").iterdir())
    said = place.samestep("branch", *words, "--processes", "1", code=2)
    lines = [line for line in said.splitlines() if line.startswith("samestep: ")]
    assert len(lines) == 1, said
    assert told in lines[0]
    assert "Traceback" not in said
    assert sorted((place.path / "runs").iterdir()) == before


def test_a_branch_whose_checkpoint_is_gone_does_not_begin_anew(place: Place) -> None:
    place.samestep("branch", "first", "--step", "4", "--run", "torn", "--later")
    (place.path / "runs/torn/checkpoints/step-00000004/values.json").write_text("{}")
    said = place.samestep("train", "runs/torn", "--run", "torn", code=2)
    assert "none of its checkpoints is whole, and a branch has no other beginning" in said
