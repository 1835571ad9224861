"""samestep.train: from a script's main guard, and from cells of a notebook."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
from test_launchers import started

from conftest import ROOT, Workplace

START = (ROOT / "docs/start.md").read_text()
SCRIPT = re.search(r"^```python\n(.*?)^```", START, re.DOTALL | re.MULTILINE)[1]  # type: ignore[index]
OFF = 'run="line", track={"wandb": "off"}'
QUICK = SCRIPT.replace('run="line"', OFF).replace("steps=200", "steps=20")
ALONE = QUICK.replace("processes=2", "processes=1")

# What IPython does with a cell: its text is kept for tracebacks, and `__main__` has no file.
NOTEBOOK = """
import linecache, sys, types

main = sys.modules["__main__"] = types.ModuleType("__main__")
for number, text in enumerate(open("cells.txt").read().split("# cell\\n")):
    name = f"<cell {number}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    exec(compile(text, name, "exec"), vars(main))
"""
CELLS = """
import datasets
import numpy as np
import samestep
import torch
from torch import nn
from torch.nn import functional as F

ROWS, model = 64, object()  # the second is a parameter's name in the class
# cell
def column(rows):
    return np.arange(rows, dtype="float32")[:, None] / ROWS
# cell
class Mine(samestep.Task):
    width: int = 8

    def data(self, split):
        return datasets.Dataset.from_dict({"x": column(ROWS)}) if split == "train" else None

    def model(self):
        return nn.Sequential(nn.Linear(1, self.width), nn.Linear(self.width, 1))

    def loss(self, model, batch):
        return F.mse_loss(model(batch["x"]), batch["x"], reduction="sum"), len(batch["x"])
# cell
done = samestep.train(
    Mine(width=4), run="cells", processes=2, global_batch_size=16, micro_batch_size=8, steps=6,
    optimizer={"name": "sgd", "lr": np.float64(1e-3)}, track={"wandb": "off"},
)
print(done.state["weights"], samestep.load(done.path)[0].out_features)
"""


def test_the_script_in_the_documents_trains_and_the_command_line_knows_the_run(workplace: Workplace) -> None:
    workplace.write("line.py", ALONE)
    done = workplace.command(sys.executable, "line.py")
    assert done.code == 0, done.err
    state = workplace.state("line")
    assert (state["world_size"], state["step"]) == (1, 20)
    assert done.out.splitlines()[0] == "fresh (runs/line)"
    assert done.out.splitlines()[-1] == f"{state['weights']} {state['loss']}"
    assert "task: line.py:Line" in (workplace.path / "runs/line/config.yaml").read_text()
    typed = workplace.train("runs/line/call.yaml", "--run", "line", "processes=1")
    assert typed.out == f"line is done already, at step 20\nweights {state['weights']}\n"


def test_a_class_of_a_notebook_s_cells_trains_on_two_processes(workplace: Workplace) -> None:
    workplace.write("notebook.py", NOTEBOOK)
    workplace.write("cells.txt", CELLS)
    done = workplace.command(sys.executable, "notebook.py")
    assert done.code == 0, done.err
    state = workplace.state("cells")
    assert state["world_size"] == 2
    assert done.out.splitlines()[-1] == f"{state['weights']} 4"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "the end of its parent"])
def test_the_run_stops_and_saves_at(workplace: Workplace, number: signal.Signals) -> None:
    endless = ALONE.replace("steps=20", "steps=100_000").replace("track={", "track={'every': 1, ")
    workplace.write("line.py", endless)
    line = subprocess.Popen(
        [sys.executable, "line.py"], cwd=workplace.path, env=workplace.env, stderr=subprocess.PIPE, text=True
    )
    started(workplace, "line")
    line.send_signal(number)  # to it alone, as some notebooks do
    _, err = line.communicate(timeout=60)
    until = time.monotonic() + 60
    while (state := workplace.state("line"))["status"] == "running":
        assert time.monotonic() < until, "the run did not stop"
        time.sleep(0.1)
    assert state["status"] == "stopped"
    assert (workplace.path / f"runs/line/checkpoints/step-{state['step']:08d}/manifest.json").exists()
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == f"samestep.errors.Stopped: {state['reason']}"
