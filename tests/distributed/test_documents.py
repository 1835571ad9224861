"""What your-model.md, data.md, coming-from.md and sweep.md in docs/ show is run, or is a piece of an example that is."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ranks import Ranks
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from conftest import ROOT, Workplace


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # what is kept there goes with the test's folder
    made = Ranks()
    yield made
    made.close()


def bare(text: str) -> str:
    """Its lines without indentation and blank ones, which a formatter sets in a document in its own way."""
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def test_what_coming_from_shows_stands_in_the_examples() -> None:
    files = [bare(path.read_text()) for path in sorted((ROOT / "examples/coming_from").glob("*.py"))]
    shown = [bare(block) for block in blocks("coming-from.md", "python")]
    assert len(shown) == 8
    for block in shown:
        assert any(block in text for text in files), block


def test_your_model_works_line_by_line_and_piece_by_piece(tmp_path: Path, ranks: Ranks) -> None:
    def samestep(command: str, *words: str) -> None:
        job = {"folder": str(tmp_path), "name": "said", "world_size": 1, "command": command, "words": words}
        answer = ranks.ask(job)
        assert answer["codes"] == [0], answer["said"]

    def metrics(run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()]

    (lines,) = blocks("your-model.md", "bash")
    for line in lines.splitlines():
        program, command, *words = shlex.split(line, comments=True)
        assert program == "samestep"
        samestep(command, *words)
    assert metrics("first")[-1]["eval_accuracy"] > 0.9
    assert (tmp_path / "first.safetensors").exists()

    with (tmp_path / "points.csv").open("w") as file:
        csv.writer(file).writerows([("left", "up", "arm"), *((n / 50, -n / 50, n % 3) for n in range(100))])
    for block in blocks("your-model.md", "python"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
        task = re.findall(r"^class (\w+)", block, re.MULTILINE)[-1]
        config = [name] if "samestep.main" in block else ["mine.yaml", f"task={name}:{task}"]
        samestep("train", *config, "--run", name, "epochs=2", "track={every: 1, wandb: 'off'}")
    assert {"eval_arm_0", "eval_arm_1", "eval_arm_2", "eval_accuracy"} <= metrics("measured.py")[-1].keys()
    assert {"error", "size"} <= metrics("two_losses.py")[0].keys()
    assert metrics("again.py")[0]["loss"] != metrics("measured.py")[0]["loss"]
    assert metrics("names.py")[-1]["loss"] < metrics("names.py")[0]["loss"]


def test_each_source_of_data_works_as_it_is_shown(tmp_path: Path, ranks: Ranks) -> None:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 300), ("eval", 40)):
        rng.integers(0, 256, rows * 64 + 1, dtype=np.uint8).tofile(tmp_path / f"{split}.bin")
        tokens = pa.array(rng.integers(0, 256, (rows, 65)).tolist(), pa.list_(pa.uint8()))
        (tmp_path / "shards" / split).mkdir(parents=True)
        pq.write_table(pa.table({"tokens": tokens}), tmp_path / "shards" / split / "0.parquet", row_group_size=20)
        lines = (json.dumps({"tokens": row}) for row in rng.integers(0, 256, (rows, 65)).tolist())
        (tmp_path / f"prose-{split}.jsonl").write_text("\n".join(lines))
    shown = blocks("data.md", "python")
    assert len(shown) == 3
    for block in shown:
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
        task = re.findall(r"^class (\w+)", block, re.MULTILINE)[-1]
        words = ["stdlib", f"task={name}:{task}", "--run", name, "evaluate.batches=2", "with={width: 8, layers: 1, shown: 0}"]
        length = ["epochs=1", "steps=null"] if "rows=2000" in block else ["steps=3"]
        job = {"folder": str(tmp_path), "name": "said", "world_size": 1, "words": [*words, *length, "track.wandb=off"]}
        answer = ranks.ask(job)
        assert answer["codes"] == [0], answer["said"]
    assert json.loads((tmp_path / "runs/mixed.py/state.json").read_text())["step"] == 2000 // 32 + 1


OPTUNA = """
# As much of Optuna as docs/sweep.md calls, with the names and defaults of Optuna 5, where it is not installed.
import random, types

class Trial(types.SimpleNamespace):
    def suggest_float(self, name, low, high, *, step=None, log=False):
        return self.params.setdefault(name, low * (high / low) ** random.random() if log else random.uniform(low, high))

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return self.params.setdefault(name, random.randint(low, high))

class Study:
    trials = []
    best_trial = property(lambda self: min(self.trials, key=lambda trial: trial.value))
    best_value = property(lambda self: self.best_trial.value)
    best_params = property(lambda self: self.best_trial.params)

    def optimize(self, func, n_trials=None, timeout=None, n_jobs=1, catch=()):
        for number in range(n_trials):
            trial = Trial(number=number, params={})
            trial.value = func(trial)
            self.trials.append(trial)

def create_study(*, storage=None, sampler=None, pruner=None, study_name=None, direction=None, load_if_exists=False):
    return Study()
"""


@pytest.fixture
def mine(workplace: Workplace) -> Workplace:
    """The folder that docs/sweep.md speaks of."""
    assert workplace.samestep("new", "mine").code == 0
    for block in blocks("sweep.md", "yaml"):
        workplace.write(block.splitlines()[0].removeprefix("# "), block)
    return workplace


@pytest.mark.timeout(120)
def test_each_sweep_that_is_shown_finds_its_runs(mine: Workplace) -> None:
    shown = [line for block in blocks("sweep.md", "bash") for line in block.splitlines() if line.startswith("samestep sweep")]
    numbers = []
    for line in shown:
        done = mine.samestep(*shlex.split(line, comments=True)[1:], *([] if "--dry-run" in line else ["--dry-run"]))
        assert done.code == 0, done.err
        assert done.out.splitlines()[1].startswith("waiting  samestep launch mine.yaml --run mine-")
        numbers.append(len(done.out.splitlines()) - 1)
    assert numbers == [6, 6, 6, 20, 3]


@pytest.mark.timeout(120)
def test_wandbs_agent_makes_a_line_of_the_command_that_is_shown(mine: Workplace) -> None:
    """By the agent's own code; what a server would have chosen is made up here."""
    sweep = yaml.safe_load((mine.path / "wandb-sweep.yaml").read_text())
    chosen = {"optimizer.lr": {"value": 0.003}, "with.width": {"value": 64}}
    assert chosen.keys() == sweep["parameters"].keys()
    filled_in = wandb_sweeps.create_sweep_command_args({"args": chosen})
    words = [
        made
        for word in wandb_sweeps.create_sweep_command(sweep["command"])
        for made in filled_in.get(word.strip("${}"), [word])
    ]
    program, *words = words
    assert program == "samestep"
    done = mine.samestep(*words, "--run", "chosen", "epochs=1")  # WANDB_MODE is offline: no server is here
    assert done.code == 0, done.err
    config = yaml.safe_load((mine.path / "runs/chosen/config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["with"]["width"]) == (0.003, 64)


@pytest.mark.timeout(300)
def test_a_search_by_optuna_finds_a_run(mine: Workplace) -> None:
    if importlib.util.find_spec("optuna") is None:
        mine.write("optuna.py", OPTUNA)
    (search,) = blocks("sweep.md", "python")
    done = mine.command(sys.executable, mine.write("search.py", search), "2")
    assert done.code == 0, done.err
    found = re.search(r"^best: (trial-[01]) ([\d.]+) \{'lr': ([\d.e-]+), 'width': (\d+)\}$", done.out, re.MULTILINE)
    assert found, done.out
    assert mine.state(found[1])["best"]["value"] == float(found[2])
    config = yaml.safe_load((mine.path / f"runs/{found[1]}/config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["with"]["width"]) == (float(found[3]), int(found[4]))
