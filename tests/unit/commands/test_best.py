"""The best of a run: named at its end, by status and the report, and taken by export, evaluate and load."""

from __future__ import annotations

from pathlib import Path

import pytest

import samestep
from conftest import Workplace
from samestep.checkpoint import weights_hash
from samestep.commands.export import export
from samestep.commands.find_run import recorded
from samestep.commands.load import checkpoint_of
from samestep.commands.status import facts, shown
from samestep.errors import UsageError
from samestep.report import read
from samestep.report.sections import tiles
from samestep.run.folder import RunFolder

TASK = """
import samestep, torch

class Net(torch.nn.Linear):
    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "model").touch()

class Mine(samestep.Task):
    saves: bool = False
    def data(self, split):
        return {"x": torch.arange(16.0)[:, None]}
    def model(self):
        return Net(1, 1) if self.saves else torch.nn.Linear(1, 1)
    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])
    def metrics(self, model, batch):
        rows = len(batch["x"])
        return {"near": (rows * (10.0 - abs(samestep.step() - 6)), rows)}
    def export(self, folder):
        (folder / "tokenizer").touch()
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 8
micro_batch_size: 4
steps: 12
optimizer: {name: sgd, lr: 1e-4}
evaluate: {every: 3}
checkpoint: {every: 3, keep: 1, best: "near:max"}
track: {wandb: 'off'}
"""


@pytest.fixture
def place(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    workplace.write("mine.py", TASK)
    workplace.write("mine.yaml", CONFIG)
    monkeypatch.chdir(workplace.path)
    return workplace


@pytest.mark.timeout(300)
def test_the_best_is_named_and_taken_where_it_is_asked_for(place: Workplace) -> None:
    done = place.train("mine.yaml", "--run", "r")
    assert done.code == 0, done.err
    best, weights = done.out.splitlines()[-2:]
    assert best.startswith("best eval_near 10 at step 6; ")
    assert weights == f"weights {done.weights}"
    assert place.state("r")["best"] == {"metric": "eval_near", "value": 10.0, "step": 6}
    again = place.train("mine.yaml", "--run", "r").out
    assert again == f"r is done already, at step 12; best eval_near 10 at step 6\n{weights}\n"

    table, *details = next(shown("r", "runs", follow=False, as_json=False)).splitlines()
    assert table.split()[4] == "best"
    assert details[-2:] == [
        "checkpoint 12  newest: a resume, export, evaluate and load take it",
        "checkpoint 6  best eval_near 10 at step 6: --best",
    ]
    folder = RunFolder.found("r")
    page = tiles(read(folder, facts([folder])[0]["state"]))
    assert "<b>10</b><span>best eval_<wbr>near</span><small>step 6, kept</small>" in page

    last, kept = (weights_hash(samestep.load("r", best=best)) for best in (False, True))
    assert last == done.weights != kept
    assert (
        export(*recorded("r"), None, None, True)
        == f"wrote r.safetensors: step 6 of r (best eval_near 10 at step 6), weights {kept}"
    )
    said = export(*recorded("r"), Path("last.safetensors"), None)
    assert said == f"wrote last.safetensors: step 12 of r (the best eval_near 10 at step 6: --best), weights {last}"
    with pytest.raises(UsageError, match=r"r\.safetensors: it is there already; write another path"):
        export(*recorded("r"), None, None)
    with pytest.raises(UsageError, match="--best: found --step 6 beside it; write one of the two"):
        checkpoint_of(*recorded("r"), 6, best=True)
    measured = place.samestep("evaluate", "r", "--best", "--json")
    assert '"step": 6' in measured.out, measured.err


@pytest.mark.timeout(300)
def test_a_run_without_a_best_says_so_and_a_task_writes_beside_the_weights(place: Workplace) -> None:
    done = place.train("mine.yaml", "--run", "plain", "checkpoint.best=null", "steps=3", "with.saves=true")
    assert "best" not in done.out
    with pytest.raises(UsageError, match="--best: plain has kept no best; write --step N, or train with"):
        samestep.load("plain", best=True)
    assert export(*recorded("plain"), None, None) == f"wrote plain: step 3 of plain, weights {done.weights}"
    assert sorted(path.name for path in (place.path / "plain").iterdir()) == ["model", "tokenizer"]
