"""A machine that vanishes with its disk costs the steps since the last send, and no bit; a store that breaks costs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks

from samestep.run.metric_rows import timeless

TASK = """
import os, pathlib, signal, time

import torch
import samestep
from samestep import Task


class Mine(Task):
    def data(self, split):
        x = torch.linspace(-3, 3, 100 if split == "train" else 20).unsqueeze(1)
        return {"x": x, "y": x.sin()}

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(12, 1))

    def loss(self, model, batch):
        if str(samestep.step()) == os.environ.get("WAITS_AT"):
            there = pathlib.Path(os.environ["THERE"])
            until = time.monotonic() + 60
            while not there.is_file() and not any(there.glob("*/checkpoints/*/manifest.json")) and time.monotonic() < until:
                time.sleep(0.01)
            if "BREAKS" not in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            if there.is_dir():
                there.rename(there.with_name("away"))
                there.touch()
        errors = model(batch["x"]) - batch["y"]
        return errors.square().sum(), errors.numel()
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 24
micro_batch_size: 4
steps: 12
optimizer: {name: adamw, lr: 1e-2}
evaluate: {every: 3}
checkpoint: {every: 2, keep: 2, milestones: 4, best: loss}
track: {every: 1, wandb: 'off'}
"""


class Place:
    """A folder in which runs are trained."""

    def __init__(self, path: Path) -> None:
        self.path, self._ranks = path, Ranks()
        (path / "mine.py").write_text(TASK)
        (path / "mine.yaml").write_text(CONFIG)

    def samestep(self, command: str, *words: str, size: int = 1, code: int = 0, **env: str) -> str:
        env |= {"XDG_CACHE_HOME": str(self.path / "cache")}
        job = {"folder": str(self.path), "name": "said", "world_size": size, "command": command, "words": words, "env": env}
        answer = self._ranks.ask(job)
        assert set(answer["codes"]) == {code}, answer["said"]
        return "".join(answer["said"][0])

    def metrics(self, run: str) -> list[dict[str, Any]]:
        lines = (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [timeless(json.loads(line)) for line in lines]

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "runs" / run / "state.json").read_text())
        return found

    def close(self) -> None:
        self._ranks.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("stores"))
    made.samestep("train", "mine.yaml", "--run", "unbroken")
    yield made
    made.close()


@pytest.mark.parametrize("shard", ["false", "true"])
def test_a_machine_that_vanishes_with_its_disk_goes_on_from_the_store_to_the_same_bits(place: Place, shard: str) -> None:
    there, run = place.path / f"there-{shard}", f"run-{shard}"
    words = ("mine.yaml", "--run", run, f"checkpoint.copy=file://{there}")
    place.samestep("train", *words, f"shard={shard}", size=2, code=-9, WAITS_AT="9", THERE=str(there))
    shutil.rmtree(place.path / "runs" / run)
    assert "died" in place.samestep("status", f"{there.as_uri()}/{run}")
    said = place.samestep("train", *words, size=3)
    assert said.startswith("resumed from step ")
    assert f"brought from file://{there}/{run}" in said
    assert place.metrics(run) == place.metrics("unbroken")
    assert place.state(run)["weights"] == place.state("unbroken")["weights"]
    assert place.state(run)["restarts"] == 1
    assert {8, 12} <= {int(path.parent.name[5:]) for path in there.glob("*/checkpoints/*/manifest.json")}

    address = f"{there.as_uri()}/{run}"
    assert place.state("unbroken")["weights"] in place.samestep("export", address, f"{run}.safetensors")
    assert '"step": 12' in place.samestep("evaluate", address, "--json")
    assert place.samestep("status", address).splitlines()[1].split()[:3] == [run, "done", "12/12"]
    assert place.samestep("report", address, "--out", f"{run}.html").strip() == f"{run}.html"


def test_a_store_that_breaks_costs_no_step_and_is_said_once_and_at_the_end(place: Place) -> None:
    there = place.path / "there"
    words = ("mine.yaml", "--run", "broken", f"checkpoint.copy={there}")
    said = place.samestep("train", *words, size=2, WAITS_AT="9", THERE=str(there), BREAKS="1")
    assert place.metrics("broken") == place.metrics("unbroken")
    assert place.state("broken")["weights"] == place.state("unbroken")["weights"]
    warnings = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2, said
    assert "training goes on, and sending is tried again" in warnings[0]
    assert f"step 12, the newest, was not sent to {there}/broken" in warnings[1]
    assert said.splitlines()[-1].startswith("weights ")
