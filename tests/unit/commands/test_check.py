"""`samestep check` on machines that are not there: with little memory, with a device that computes wrongly."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from forked import forked

from conftest import ROOT
from samestep.batches import Batches
from samestep.commands.check.model import look
from samestep.config import load_config
from samestep.runtime import read_runtime

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside torch's threads

TASK = """
import datasets, torch
from samestep.exact import exchange_bytes
from samestep import Task

class Mine(Task):
    def data(self, split):
        return datasets.Dataset.from_dict({"x": [[float(i)] * 1000 for i in range(64)]}) if split == "train" else None
    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(1000, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 1))
    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 48
micro_batch_size: 4
steps: 1
optimizer: {name: sgd, lr: 1e-5}
processes: 2
reduce: fast
"""
OPTIMIZER = """
    def optimizer(self, model, config):
        return torch.optim.{}
"""
WEIGHTS = 4 * (1000 * 1001 + 1001)  # bytes
ROW = 4 * (1000 + 1000)  # of activations: what the two layers keep of their inputs; ReLU keeps its output, which is the same


def with_memory(num_bytes: float) -> Callable[[], None]:
    def patch() -> None:
        psutil.virtual_memory = lambda: SimpleNamespace(total=num_bytes, available=num_bytes)  # type: ignore[assignment,return-value]

    return patch


def checked(folder: Path, *words: str, before: Callable[[], object], task: str = TASK) -> dict[str, str]:
    """The lines, by what they are about."""
    (folder / "mine.py").write_text(task)
    (folder / "mine.yaml").write_text(CONFIG)
    _, lines = forked(folder, "check", "mine.yaml", *words, before=before)
    return {line[9:].split()[0]: line for line in lines}


@pytest.mark.parametrize(
    ("rows", "more", "size"),
    [
        (30, [], 24),  # of more rows not both processes would have some
        (14, [], 12),
        (14, ["leaves=3"], 8),  # with 12 rows a step has 4 micro-batches, which 3 leaves do not divide
        (3, [], 3),
        (30, ["--nodes", "3"], 8),  # six processes
    ],
)
def test_the_largest_micro_batch_that_fits_divides_the_global_one(
    tmp_path: Path, rows: int, more: list[str], size: int
) -> None:
    """Memory for the weights, the gradients, their buckets and so many rows; the ordered sum's copies would get fewer."""
    needed = WEIGHTS * 3 + (rows + 0.5) * ROW
    lines = checked(tmp_path, "--fit", *more, before=with_memory(2 * needed / 0.9 - WEIGHTS))
    found = re.search(r"micro_batch_size=(\d+) is the largest divisor of 48", lines["fit"])
    assert found is not None, lines
    assert int(found[1]) == size, lines["fit"]
    assert lines["fit"].startswith("ok" if size >= 4 else "error")


def test_a_model_too_large_for_the_memory_is_an_error(tmp_path: Path) -> None:
    lines = checked(tmp_path, "--fit", before=with_memory(WEIGHTS))
    assert lines["fit"].startswith("error    fit         no micro_batch_size fits: ")
    assert "write a smaller model, or precision=bf16" in lines["fit"]
    assert "memory" not in lines  # nothing that large is tried
    (tmp_path / "said.txt").unlink()
    lines = checked(tmp_path, before=with_memory(2 * WEIGHTS))
    assert lines["memory"].startswith("error    memory      about ")
    assert "write a smaller micro_batch_size or model" in lines["memory"]


def test_a_device_that_computes_wrongly_is_named(tmp_path: Path) -> None:
    def break_products() -> None:
        true, calls = torch.Tensor.__matmul__, iter(range(100))
        torch.Tensor.__matmul__ = lambda a, b: true(a, b) + (next(calls) == 1)  # type: ignore[method-assign]

    lines = checked(tmp_path, before=break_products)
    assert lines["devices"].startswith("error    devices     a product of matrices comes out different on cpu; leave that out")
    (tmp_path / "said.txt").unlink()
    assert checked(tmp_path, before=lambda: None)["devices"].startswith(
        "ok       devices     the same product of matrices twice"
    )


def test_a_model_that_is_evaluated_by_its_average_passes(tmp_path: Path) -> None:
    averaged = TASK.replace(
        "return torch.nn.Sequential(torch.nn.Linear(1000, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 1))",
        "return torch.nn.ModuleDict({n: torch.nn.Linear(1000, 1).requires_grad_(n == 'net') for n in ('net', 'average')})",
    ).replace("model(batch", "model['net' if model.training else 'average'](batch")
    (tmp_path / "mine.py").write_text(averaged)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    code, lines = forked(tmp_path, "check", "mine.yaml", before=lambda: None)
    assert code == 0, lines
    assert any(line.startswith("ok       loss        is a sum") for line in lines)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("AdamW(model.parameters())", "AdamW without fused kernels: .*; write AdamW\\(…, fused=True\\)$"),
        (
            "RMSprop(model.parameters())",
            "RMSprop without fused kernels: .*; RMSprop has none; Adam, AdamW, SGD and Adagrad of torch do$",
        ),
        ("AdamW(model.parameters(), fused=True)", None),
    ],
)
def test_what_an_optimizer_of_ones_own_costs_on_a_gpu(tmp_path: Path, made: str, told: str | None) -> None:
    lines = checked(tmp_path, before=lambda: None, task=TASK + OPTIMIZER.format(made))
    assert ("optimizer" in lines) == (told is not None), lines
    assert told is None or re.search(told, lines["optimizer"])


def test_a_check_ends_its_loader_processes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cycle holds them until the interpreter ends, it would wait for them for ever."""
    closed = []

    def close(batches: Batches) -> None:
        closed.append(batches)
        true(batches)

    true = Batches.close
    monkeypatch.setattr(Batches, "close", close)
    config, _ = load_config(ROOT / "configs/seed.yaml", ["workers=1", "device=cpu", f"runs={tmp_path}/runs"])
    assert [line.level for line in look(config, read_runtime(), 1, 0)].count("error") == 0
    assert len(closed) == 1
    assert multiprocessing.active_children() == []
