"""A user's mistake gets one line and leaves nothing behind; a fault in training is agreed on by every rank."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from conftest import Workplace
from samestep.randomness.order import permute

TASK = """
import datasets, torch
from samestep import Task

class Mine(Task):
    width: int = 3

    def data(self, split):
        if split == "eval":
            return datasets.Dataset.from_dict({"x": [[1.0] * self.width] * 4}) if self.width == 7 else None
        return datasets.Dataset.from_dict({"x": [[float(i)] * self.width for i in range(64)]})

    def model(self):
        return torch.nn.Linear(self.width, 1)

    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 16
micro_batch_size: 8
steps: 20
optimizer: {name: sgd, lr: 1e-5}
track: {every: 1, wandb: 'off'}
"""


@pytest.fixture
def mine(workplace: Workplace) -> Workplace:
    workplace.write("mine.py", TASK)
    workplace.write("mine.yaml", CONFIG)
    return workplace


@pytest.mark.parametrize(
    ("find", "put", "words", "line"),
    [
        ("", "", ["task=mine.py:Mime"], "task: mine.py has no class Mime; did you mean mine.py:Mine?"),
        ("", "", ["task=mine.py:Task"], "task: mine.py:Task is not a task; write a class derived from samestep.Task"),
        ("", "", ["task=gone.py:Mine"], "task: found no file gone.py in {here} or beside the config; write path/to/file.py:Class"),
        ("", "", ["task=gone:Mine"], "task: found no module gone in {here} or among what is installed; write module:Class or path/to/file.py:Class"),
        ("", "", ["task=txet"], "task: found 'txet'; write module:Class, path/to/file.py:Class, or one of regression, text, digits"),
        ("", "", ["with.widht=4"], "with.widht: unknown key; did you mean width?"),
        ("", "", ["with.width=wide"], "with.width: found 'wide'; write an integer"),
        ("", "", ["optimizer.name=sdg"], "optimizer.name: torch.optim has no 'sdg'; did you mean sgd?"),
        ("", "", ["optimizer.momentun=0.9"], "optimizer.momentun: SGD takes no such argument; did you mean momentum?"),
        ("", "", ["precision=fp16"], "precision: found fp16 without a GPU, where gradients would underflow in silence; write bf16 or no"),
        ("range(64)", "range(0)", [], 'data: data("train") has no rows'),
        ("range(64)", "range(9)", ["drop_last=true"], "drop_last: 9 rows are less than one global batch of 16"),
        ('batch["x"]).square', 'batch["y"]).square', [], "task: the batch has no column 'y'; data() gives x"),
        (".square().sum()", ".square()", [], "task: loss returned a tensor of shape (8, 1); write the SUM of the losses, a scalar tensor, and what to divide by"),
        (', len(batch["x"])', "", [], "task: loss returned a tensor of shape (); write return loss_sum, weight"),
        ("torch.nn.Linear(self.width, 1)", "torch.nn.Identity()", [], "task: the model has no trainable parameter; return a torch.nn.Module with some from model()"),
        ("import datasets, torch", "import dataset_of_mine", [], "task: mine.py imports dataset_of_mine, which is not installed here"),
        ("return torch", "return) torch", [], "task: mine.py line 14: unmatched ')'"),
        ("", "", ["converge={metric: acc, goal: max, patience: 1}", "with.width=7"], "converge.metric: found 'acc'; evaluation gives loss"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(mine: Workplace, find: str, put: str, words: list[str], line: str) -> None:
    mine.write("mine.py", TASK.replace(find, put, 1) if find else TASK)
    done = mine.train("mine.yaml", "--run", "r", *words)
    assert done.err == f"samestep: {line}\n".replace("{here}", str(mine.path))
    assert done.code == 2
    assert not (mine.path / "runs" / "r").exists()


def test_a_launcher_that_ends_the_ranks_does_not_silence_the_one_that_speaks(mine: Workplace) -> None:
    """Another rank has come to the same refusal and left first, which its launcher takes for the end of all."""
    ended = """
import os, signal, sys
import click
from samestep import cli
echo = click.echo
click.echo = lambda *words, **options: (os.kill(os.getpid(), signal.SIGTERM), echo(*words, **options))
sys.argv[1:] = ["train", "mine.yaml", "task=gone.py:Mine"]
cli.main()
"""
    done = mine.command(sys.executable, "-c", ended)
    assert (done.code, done.err) == (
        2,
        f"samestep: task: found no file gone.py in {mine.path} or beside the config; write path/to/file.py:Class\n",
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_nan_stops_every_rank_before_the_step_and_names_it(mine: Workplace, processes: int) -> None:
    mine.write(
        "mine.py",
        TASK.replace('batch["x"]).square().sum()', 'batch["x"]).square().sum() * bad(batch)')
        + """
def bad(batch):
    return float("nan") if (batch["x"] == ROW_OF_STEP_2).any() else 1.0
""",
    )
    row = permute(np.array([20]), 64, seed=0, epoch=0)[0]
    mine.write("mine.py", (mine.path / "mine.py").read_text().replace("ROW_OF_STEP_2", str(row)))
    done = mine.train("mine.yaml", "--run", "nan", "checkpoint.every=1", processes=processes)
    assert done.code == 1
    state = mine.state("nan")
    assert state["status"] == "failed"
    steps = [row["step"] for row in mine.metrics("nan")]
    assert f"step {len(steps) + 1}: the loss is nan. No step was taken with it" in state["reason"]
    assert state["step"] == len(steps) == 1
    assert sorted(path.name for path in (mine.path / "runs/nan/checkpoints").iterdir()) == ["step-00000001"]


def test_a_run_stops_when_it_has_converged(mine: Workplace) -> None:
    settings = "converge={metric: loss, goal: min, patience: 2, min_delta: 1000}"
    done = mine.train("mine.yaml", "--run", "c", "with.width=7", "evaluate.every=3", settings)
    assert done.code == 0, done.err
    assert "converged at step 9" in done.out
    assert mine.state("c")["step"] == 9
    assert mine.state("c")["status"] == "done"


def test_a_changed_config_is_refused_with_both_values(mine: Workplace) -> None:
    assert mine.train("mine.yaml", "--run", "r").code == 0
    done = mine.train("mine.yaml", "--run", "r", "seed=1", "clip=2.0")
    assert done.code == 2
    assert done.err.splitlines() == [
        "samestep: seed: the run has 0, found 1; write the same, or another --run NAME",
        "samestep: clip: the run has None, found 2.0; write the same, or another --run NAME",
    ]
    longer = mine.train("mine.yaml", "--run", "r", "steps=30")
    assert longer.out.startswith("resumed from step 20")
    assert longer.weights == mine.train("mine.yaml", "--run", "whole", "steps=30").weights


def test_load_gives_the_trained_model(mine: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = mine.train("mine.yaml", "--run", "r").weights
    monkeypatch.chdir(mine.path)
    import samestep
    from samestep.checkpoint import weights_hash

    model = samestep.load("r")
    assert weights_hash(model) == weights
    assert not model.training


@pytest.mark.parametrize(
    ("rows", "micro", "processes", "code", "words"),
    [
        (
            64,
            1,
            1,
            2,
            "samestep: micro_batch_size: found 1, and BatchNorm needs more than one value per channel; write 2 or more",
        ),
        (
            9,
            8,
            1,
            2,
            "last micro-batch of an epoch has too few rows; write drop_last: true, or another micro_batch_size than 8",
        ),
        (
            25,
            8,
            2,
            1,
            "last micro-batch of an epoch has too few rows; write drop_last: true, or another micro_batch_size than 8",
        ),
    ],
    ids=["always one row", "in the first step", "in a later step, on another rank"],
)
def test_one_row_is_too_few_for_batch_norm(
    mine: Workplace, rows: int, micro: int, processes: int, code: int, words: str
) -> None:
    model = "torch.nn.Sequential(torch.nn.Linear(self.width, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))"
    mine.write("mine.py", TASK.replace("torch.nn.Linear(self.width, 1)", model).replace("range(64)", f"range({rows})"))
    done = mine.train("mine.yaml", "--run", "r", f"micro_batch_size={micro}", processes=processes)
    assert done.code == code
    assert words in done.err
    if processes == 1:
        assert len(done.err.splitlines()) == 1
