"""Faults on GPUs. tests/chaos/test_devices.py shows the same on a stand-in for a device, where there is none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from conftest import Workplace
from samestep.control import Progress
from samestep.control.gate import Gate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
TASKS = Path(__file__).parent / "fault_tasks.py"
_LONG_CYCLES = 1 << 31  # about a second


@two_gpus
@pytest.mark.parametrize("where", ["report", "after_step", "launch", "kernel", "in flight"])
def test_a_death_while_the_other_waits_for_its_gpu_loses_no_finished_step(workplace: Workplace, where: str) -> None:
    del workplace.env["CUDA_VISIBLE_DEVICES"]
    task, width = "FaultyAfterStep" if where == "after_step" else "Faulty", 200_000 if where == "in flight" else 256
    workplace.write(
        "case.yaml",
        f"task: {TASKS}:{task}\nwith: {{where: {where}, mark: {workplace.path}/mark, width: {width}}}\n"
        "global_batch_size: 32\nmicro_batch_size: 8\nsteps: 40\noptimizer: {name: adamw, lr: 1e-3}\n"
        "track: {every: 1, wandb: 'off'}\naudit: false\n",
    )
    marks = [workplace.path / f"mark-{rank}" for rank in (0, 1)]
    for mark in marks:
        mark.touch()
    whole = workplace.train("case.yaml", "--run", "whole")
    for mark in marks:
        mark.unlink()
    died = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert died.code == 1
    assert "no finished step is lost" in died.out, died.out + died.err
    again = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert "resumed from step 1" in again.out  # the 10th or later: the device may have been a step behind its host
    assert again.weights == whole.weights


def test_a_gate_is_read_when_the_device_comes_to_it() -> None:
    gate, loss = Gate(), torch.tensor(0.747, device="cuda")
    assert gate.passed(loss) == loss
    torch.cuda._sleep(_LONG_CYCLES)
    late = gate.passed(loss)
    gate.shut()  # the copy is queued, and has not run
    assert torch.isnan(late)


def test_a_device_is_seen_where_it_stands_without_a_wait() -> None:
    progress = Progress(lambda: torch.cuda.current_stream().record_event())
    torch.cuda.synchronize()
    progress.record(3, "computing")
    torch.cuda._sleep(_LONG_CYCLES)
    progress.record(3, "meeting the other ranks")
    time.sleep(0.05)
    assert progress.behind() == (3, "computing")
    torch.cuda.synchronize()
    assert progress.behind() is None
