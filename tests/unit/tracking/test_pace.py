"""What rows say of a run's speed: no evaluation, save or pause counts, and no wait of a device's is asked for."""

from __future__ import annotations

import time

import datasets
import numpy as np
import pytest
import torch
from built_here import Noting, built
from torch import nn

from samestep.checkpoint import weights_hash
from samestep.control import Watchdog
from samestep.loop import train
from samestep.run.metric_rows import Row
from samestep.session.flops import micro_batch_flops
from samestep.task import Batch, Ratio, Task
from samestep.tracking import NullTracker, Pace, peak_flops


class Slow(Task):
    """Its rows take 1 ms each to read, and an evaluation takes half a second."""

    def data(self, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"x": np.ones((16, 2), dtype=np.float32)})

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def transform(self, row: Row, rng: np.random.Generator) -> Row:
        time.sleep(0.001)
        return row

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        return model(batch["x"]).sum(), len(batch["x"])

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, Ratio]:
        time.sleep(0.5)
        return {"loss": self.loss(model, batch)}


def test_a_row_counts_its_steps_and_leaves_evaluation_out() -> None:
    tracker = Noting()
    begun = time.monotonic()
    words = ["track.every=2", "global_batch_size=16", "micro_batch_size=8", "steps=6", "evaluate={every: 2, batches: 1}"]
    train(built(tracker, *words, task=Slow()))
    took_s = time.monotonic() - begun
    assert [row["step"] for row in tracker.rows] == [2, 4, 6]
    for row in tracker.rows:
        assert row["data_wait_s"] >= 0.032  # two steps of 16 rows
        assert row["step_s"] >= 0.016
        assert row["samples_per_s"] == pytest.approx(16 / row["step_s"])
        assert row["data_wait_s"] <= 2 * row["step_s"]
        assert row["peak_memory_bytes"] > 10_000_000
    assert 2 * sum(row["step_s"] for row in tracker.rows) <= took_s - 1.0  # two evaluations of half a second


class SlowLoss(Slow):
    """Its loss takes 30 ms."""

    def transform(self, row: Row, rng: np.random.Generator) -> Row:
        return row

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        time.sleep(0.03)
        return model(batch["x"]).sum(), len(batch["x"])


def test_an_audits_computing_is_no_waiting_for_data() -> None:
    tracker = Noting()
    words = [
        "track.every=2",
        "global_batch_size=16",
        "micro_batch_size=8",
        "steps=4",
        "audit={every: 1}",
        "evaluate={batches: 1}",
    ]
    train(built(tracker, *words, task=SlowLoss()))
    for row in tracker.rows:
        assert row["step_s"] >= 0.09  # two micro-batches, and one of them again
        assert row["data_wait_s"] < 0.03


def test_the_first_interval_and_each_pause_begin_with_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    watch = Watchdog.off()
    pace = Pace("tokens", watch, torch.device("cpu"), first_step=10)
    rows = []
    for step, (pause, read, compute) in enumerate([(100, 1, 2), (0, 2, 3), (50, 1, 1), (0, 1, 1)], 11):
        if pause:
            pace.pause()
        now += pause
        watch.step(step - 1)
        watch.at("reading data")
        now += read
        watch.at("computing")
        now += compute
        watch.meeting()
        if pace.is_paused:
            pace.go_on()
        if step % 2 == 0:
            rows.append(pace.columns(step, weight=80.0))
    assert [(row["step_s"], row["data_wait_s"], row["tokens_per_s"]) for row in rows] == [(4.0, 3.0, 10.0), (2.0, 2.0, 20.0)]
    assert "mfu" not in rows[0]
    pace.step_at_peak_s = 0.5
    now += 2
    assert pace.columns(15, weight=1.0)["mfu"] == 0.25


def test_the_operations_of_a_micro_batch_are_counted_and_leave_nothing() -> None:
    alone, counted = built(NullTracker()), built(NullTracker())
    rows, features = 32, 10
    # forward and the gradient of the weights, a multiplication and an addition for each
    assert micro_batch_flops(counted) == 2 * (2 * rows * features)
    train(alone)
    train(counted)
    assert weights_hash(alone.model) == weights_hash(counted.model)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA GH200 480GB", 990e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10G", 70e12, 31.5e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA L40", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
    ],
)
def test_a_known_device_has_a_peak_for_what_it_computes_in(name: str, bf16: float | None, fp32: float | None) -> None:
    assert (peak_flops(name, torch.bfloat16), peak_flops(name, torch.float32)) == (bf16, fp32)
    assert peak_flops(name, torch.float16) == bf16
    assert peak_flops(name, torch.float64) is None


def test_products_that_may_be_rounded_have_no_known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "high")
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.float32) is None
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
