"""From a first task to what has become of it: new, train, evaluate, export, load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import samestep
from conftest import Workplace
from samestep.commands.new import new
from samestep.errors import UsageError


@pytest.fixture
def begun(workplace: Workplace) -> Workplace:
    done = workplace.samestep("new", "my-spirals")
    assert done.out == "wrote my-spirals.py and my-spirals.yaml; next: samestep train my-spirals.yaml\n"
    return workplace


def test_what_new_writes_trains_at_once_on_one_process_and_on_two(begun: Workplace) -> None:
    words = ("my-spirals.yaml", "epochs=4", "track.wandb=off")
    one, two = begun.train(*words, "--run", "one"), begun.train(*words, "--run", "two", processes=2)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert one.weights == two.weights
    assert begun.metrics("one")[-1]["eval_accuracy"] > 0.9


def test_new_overwrites_nothing(begun: Workplace) -> None:
    done = begun.samestep("new", "my-spirals.py")
    assert (done.code, done.err) == (2, "samestep: my-spirals.py: it is there already; write another name\n")


@pytest.mark.parametrize("name", ["torch", "sub/datasets.py", "json", "sys", "__main__", "sklearn"])
def test_new_leaves_the_names_of_modules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as in a plain script
    with pytest.raises(UsageError, match=f"found a module called {Path(name).stem}, and one of the two would hide the other"):
        new(name)
    Path("folder").mkdir()
    monkeypatch.syspath_prepend(".")
    assert new("folder").startswith("wrote folder.py")


def test_a_run_is_evaluated_to_the_bit_exported_and_loaded_without_its_file(
    begun: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("my-spirals.yaml", "epochs=2", "track.wandb=off", "evaluate.every=40", "checkpoint.every=40", "--run", "first")
    done = begun.train(*words)
    rows = {row["step"]: row for row in begun.metrics("first") if "eval_loss" in row}
    (begun.path / "my-spirals.py").rename(begun.path / "gone.txt")
    assert sorted(rows) == [40, 80, 94]
    for step, more in ((94, ()), (80, ("--step", "80"))):
        found = json.loads(begun.samestep("evaluate", "first", "--json", *more).out)
        assert found == {"step": step} | {key: rows[step][f"eval_{key}"] for key in ("accuracy", "loss")}
    assert begun.samestep("evaluate", "first", "--data", "train").out.startswith("step 94  accuracy ")

    told = begun.samestep("export", "first", "weights.safetensors").out
    best = max((40, 80, 94), key=lambda step: (rows[step]["eval_accuracy"], -step))
    named = f" (best eval_accuracy {rows[94]['eval_accuracy']:.6g} at step 94)" if best == 94 else ""
    assert told == f"wrote weights.safetensors: step 94 of first{named}, weights {done.weights}\n"
    monkeypatch.chdir(begun.path)
    model, weights = samestep.load("first"), safetensors.torch.load_file("weights.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    earlier = samestep.load("first", step=80).state_dict()
    assert not torch.equal(earlier["0.weight"], weights["0.weight"])
    monkeypatch.chdir(begun.path / "tmp")
    elsewhere = samestep.load(Path("../runs/first")).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in elsewhere.items())

    for line in (
        ["evaluate", "first", "--step", "3"],
        ["export", "first", "elsewhere"],
        ["export", "first", "weights.safetensors"],
        ["evaluate", "second"],
    ):
        refused = begun.samestep(*line)
        assert refused.code == 2
        assert refused.err in (
            "samestep: --step: found 3; first has checkpoints of steps 80, 94\n",
            "samestep: elsewhere: Sequential is no model of transformers; write a path that ends in .safetensors\n",
            "samestep: weights.safetensors: it is there already; write another path\n",
            "samestep: second: found no such run; write the name of a folder under runs, or a path\n",
        )


SCRIPT = """
import datasets
import torch
import samestep


class Mine(samestep.Task):
    width: int = 8

    def data(self, split):
        return datasets.Dataset.from_dict({"x": [[float(i)] for i in range(64)]}) if split == "train" else None

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(1, self.width), torch.nn.Linear(self.width, 1))

    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])


samestep.main(Mine, global_batch_size=16, micro_batch_size=8, steps=6, optimizer={"name": "sgd", "lr": 1e-5})
"""


def test_a_script_is_enough(workplace: Workplace) -> None:
    workplace.write("mine.py", SCRIPT)
    words = ("width=4", "lr=1e-6", "track.wandb=off")
    alone = workplace.command(sys.executable, "mine.py", "--run", "one", *words)
    assert alone.code == 0, alone.err
    assert workplace.state("one")["step"] == 6
    config = (workplace.path / "runs/one/config.yaml").read_text()
    assert "# command line\nwith: {width: 4}\n" in config
    assert "# mine.py\nsteps: 6\n" in config
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    ranks = workplace.command(sys.executable, *launcher, "mine.py", "--run", "two", *words)
    assert workplace.state("two")["world_size"] == 2, ranks.err
    named = workplace.train("mine.py", "--run", "three", *words)
    assert alone.weights == ranks.weights == named.weights
    again = workplace.command(sys.executable, "mine.py", "--run", "one", *words)
    assert again.out.startswith("one is done already, at step 6\n")


GUARD = """
if __name__ == "__main__":
    with open("ran", "a") as file:
        file.write("x")
    settings = {"optimizer": {"name": "sgd", "lr": 1e-5}, "track": {"wandb": "off"}}
    samestep.main(Mine, global_batch_size=16, micro_batch_size=8, steps=6, **settings)
    raise AssertionError("after the last line")
"""


@pytest.mark.parametrize("guard", [GUARD, GUARD.replace('__name__ == "__main__"', "'__main__' == __name__")])
def test_a_script_may_keep_its_call_under_a_guard(workplace: Workplace, guard: str) -> None:
    workplace.write("mine.py", SCRIPT.partition("samestep.main(")[0] + guard)
    workplace.env["PYTHONHASHSEED"] = "0"  # without it a script begins once more, from its first line
    ran = workplace.path / "ran"
    alone = workplace.command(sys.executable, "mine.py", "--run", "one", "width=4")
    assert alone.code == 0, alone.err
    assert ran.read_text() == "x"
    named = workplace.samestep("train", "mine.py", "--run", "two", "width=4")
    assert ran.read_text() == "xx"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    ranks = workplace.command(sys.executable, *launcher, "mine.py", "--run", "three", "width=4")
    assert ran.read_text() == "xxxx"
    assert alone.weights == named.weights == ranks.weights
    assert workplace.samestep("check", "mine.py").code == 0


def test_what_a_guard_raises_is_one_line(workplace: Workplace) -> None:
    workplace.write("mine.py", SCRIPT.partition("samestep.main(")[0] + 'if __name__ == "__main__":\n    int("x")\n')
    done = workplace.samestep("train", "mine.py")
    assert done.code == 2
    assert done.err.startswith("samestep: task: mine.py cannot be imported: ValueError: invalid literal for int()")
    assert len(done.err.splitlines()) == 1


def test_a_script_s_mistakes_are_one_line_each(workplace: Workplace) -> None:
    workplace.write("mine.py", SCRIPT.replace("steps=6", "stesp=6, epochs=0"))
    done = workplace.command(sys.executable, "mine.py")
    assert done.code == 2
    assert (
        done.err
        == "samestep: epochs: found 0; write a number greater than 0\nsamestep: stesp: unknown key; did you mean steps?\n"
    )
    workplace.write("mine.py", "import samestep\n")
    done = workplace.samestep("train", "mine.py")
    assert done.code == 2
    assert done.err.startswith("samestep: mine.py: it calls no samestep.main; write samestep.main(YourTask, steps=…")


CHECKED = """
import datasets, time, torch
from samestep import Task

class Right(Task):
    def data(self, split):
        first = 0 if split == "train" else 64
        return datasets.Dataset.from_dict({"x": [[float(i)] for i in range(first, first + 64)]})
    def model(self):
        return torch.nn.Linear(1, 1)
    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])

class Mean(Right):
    def loss(self, model, batch):
        return model(batch["x"]).square().mean(), len(batch["x"])

class Weight(Right):
    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), 1

class Column(Right):
    def loss(self, model, batch):
        return model(batch["y"]).square().sum(), 8

class Clock(Right):
    def loss(self, model, batch):
        return (model(batch["x"]) + time.time() % 1).square().sum(), len(batch["x"])

class Shapes(Right):
    def loss(self, model, batch):
        return model(batch["x"].T).square().sum(), len(batch["x"])

class Infinite(Right):
    def loss(self, model, batch):
        return (model(batch["x"]) / 0).square().sum(), len(batch["x"])

class Counting(Right):
    def after_step(self, model, step):
        self.scale = step + 1

    scale: int = 1
"""


@pytest.mark.parametrize(
    ("task", "words", "line"),
    [
        (
            "Mean",
            [],
            "error    loss        is the same over each row twice: a mean, where the sum belongs; write reduction",
        ),
        (
            "Weight",
            [],
            "error    loss        has the same weight over each row twice; return how many rows or tokens it",
        ),
        ("Column", [], "error    task        the batch has no column 'y'; data() gives x"),
        ("Clock", [], "error    bits        the same micro-batch twice gives two losses: an unseeded random call, or state"),
        ("Shapes", [], "error    task        RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("Infinite", [], "error    step        step 1: the loss is inf"),
        ("Counting", [], "error    task        after_step changed self.scale, which no checkpoint holds"),
        ("Right", ["--processes", "1,9"], "error    processes   found 9, and a step has 2 leaves to share; write 2 or fewer"),
        ("Right", ["checkpoint.keep=1000000000000"], "error    disk        checkpoints of "),
    ],
)
def test_check_says_what_would_go_wrong_in_one_line(workplace: Workplace, task: str, words: list[str], line: str) -> None:
    workplace.write("mine.py", CHECKED)
    workplace.write(
        "mine.yaml",
        f"task: mine.py:{task}\nglobal_batch_size: 16\nmicro_batch_size: 8\nsteps: 9\noptimizer: {{name: sgd, lr: 1e-5}}\n",
    )
    done = workplace.samestep("check", "mine.yaml", *words)
    assert done.code == 2, done.out + done.err
    assert next(said for said in done.out.splitlines() if not said.startswith("ok ")).startswith(line), done.out
    assert not (workplace.path / "runs").exists()


def test_check_finds_nothing_where_nothing_is_wrong(begun: Workplace) -> None:
    done = begun.samestep("check", "my-spirals.yaml", "--json")
    assert done.code == 0, done.err
    lines = {line["what"]: line for line in map(json.loads, done.out.splitlines())}
    assert {line["level"] for line in lines.values()} == {"ok"}
    assert lines["model"]["text"] == "1,251 parameters"
    assert lines["disk"]["text"].startswith("checkpoints of 15 kB, at most 60 kB at a time")
    assert lines["step"]["text"] == "a whole one was taken"
