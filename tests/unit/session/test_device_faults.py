"""A device that has failed gives nothing any more; what the task's own line asked of it is told all the same."""

from __future__ import annotations

import pytest

from conftest import Workplace

TASK = """
import torch
from samestep.optimizer.step import GatedOptimizer
from samestep.tasks.regression import Regression


class Mine(Regression):
    _calls: int = 0

    def loss(self, model, batch):
        object.__setattr__(self, "_calls", self._calls + 1)
        if self._calls > 12:
            GatedOptimizer.counted = property(lambda optimizer: self.assertion())  # as CUDA has it: each later call fails too
            self.assertion()  # the very line
        return super().loss(model, batch)

    def assertion(self):
        raise RuntimeError(
            "CUDA error: device-side assert triggered\\nCUDA kernel errors might be asynchronously reported"
        )
"""


@pytest.mark.timeout(120)
def test_a_sticky_error_of_the_device_keeps_the_tasks_own_line(workplace: Workplace) -> None:
    workplace.write("mine.py", TASK)
    sizes = "global_batch_size: 8\nmicro_batch_size: 8\nsteps: 30\naudit: false\n"
    workplace.write("mine.yaml", f"task: mine.py:Mine\n{sizes}optimizer: {{name: sgd, lr: 1e-3}}\n")
    done = workplace.train("mine.yaml", "--run", "one")
    assert done.code == 1, done.out + done.err
    assert "what is finished is not saved: the device does not give it any more. An earlier save stands, if any" in done.out
    said = done.err.splitlines()[-1]
    assert "RuntimeError: CUDA error: device-side assert triggered, at " in said
    assert "mine.py" in said
    assert "put CUDA_LAUNCH_BLOCKING=1 before the same command" in said
    assert "asynchronously" not in said
    assert "Traceback" not in done.err
    assert workplace.state("one")["status"] == "failed"
    assert "device-side assert" in workplace.state("one")["reason"]
