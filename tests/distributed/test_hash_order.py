"""A vocabulary made from a set is the same in every process and at every start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conftest import ROOT, Workplace

TASK = """
import datasets, torch
from samestep import Task

class Words(Task):
    def data(self, split):
        if split != "train": return None
        words = [f"w{i}" for i in range(40)]
        number = {word: float(place) for place, word in enumerate(set(words))}
        rows = {"x": [[number[words[i % 40]]] for i in range(96)], "y": [[float(i % 3)] for i in range(96)]}
        return datasets.Dataset.from_dict(rows)

    def model(self):
        return torch.nn.Linear(1, 1)

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])
"""
CONFIG = """
task: words.py:Words
global_batch_size: 24
micro_batch_size: 3
steps: 4
optimizer: {name: adamw, lr: 1e-2}
track: {every: 1, wandb: 'off'}
"""
TRAIN = ["train", "words.yaml", "--run"]


@pytest.fixture
def words(workplace: Workplace) -> Workplace:
    workplace.write("words.py", TASK)
    workplace.write("words.yaml", CONFIG)
    workplace.env.pop("PYTHONHASHSEED", None)
    workplace.env["EXTRA"] = "dev"
    return workplace


def test_a_set_has_one_order_under_every_launcher(words: Workplace) -> None:
    python, script = sys.executable, str(Path(sys.executable).with_name("samestep"))
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--", "samestep"]
    starts = {
        "script": [script, *TRAIN, "script"],
        "torchrun": [*torchrun, *TRAIN, "torchrun"],
    }
    found = {name: words.command(*line) for name, line in starts.items()}
    assert {name: done.code for name, done in found.items()} == dict.fromkeys(starts, 0), found
    assert len({done.weights for done in found.values()}) == 1
    words.env["PYTHONHASHSEED"] = "random"
    replayed = words.samestep("replay", "script", "--step", "3")
    assert replayed.code == 0, replayed.err
    measured = {words.samestep("evaluate", "script", "--data", "train", "--json").out for _ in range(3)}
    assert len(measured) == 1


@pytest.mark.parametrize(("before", "after"), [("", "0"), ("random", "0"), ("7", "7")])
def test_the_scripts_set_it_and_a_number_of_the_users_own_holds(words: Workplace, before: str, after: str) -> None:
    words.env["PYTHONHASHSEED"] = before
    line = f". {ROOT}/launch/setup.sh; env | grep PYTHONHASHSEED"
    assert words.command("bash", "-c", line).out == f"PYTHONHASHSEED={after}\n"


@pytest.mark.parametrize(
    ("before", "command", "seed"),
    [
        ("", "train", "0"),
        ("", "launch", "0"),
        ("", "replay", "0"),
        ("", "status", "unset"),
        ("os.environ['PYTHONHASHSEED'] = '7'", "train", "7"),
        ("import pdb", "train", "unset"),
        ("sys.settrace(lambda *_: None)", "train", "unset"),
    ],
)
def test_only_what_reads_data_starts_again_and_no_debugger_loses_its_process(
    words: Workplace, before: str, command: str, seed: str
) -> None:
    code = f"""
import os, sys
{before}
from samestep.runtime.hash_order import fix_hash_order
fix_hash_order()
print(os.environ.get("PYTHONHASHSEED", "unset"))
"""
    assert words.command(sys.executable, "-c", code, command).out.split() == [seed]
