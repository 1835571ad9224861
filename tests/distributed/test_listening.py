"""Who could connect to a run: on one machine nothing of it listens to any other."""

from __future__ import annotations

import pytest

from conftest import Workplace

TASK = """
import psutil
from samestep.tasks.regression import Regression

class Mine(Regression):
    def show(self, model):
        here = psutil.Process()
        launcher = here.parent()
        assert "launch" in launcher.cmdline()
        everyone = [launcher, *launcher.children(recursive=True)]
        open_ones = [(c.laddr.ip, each.pid == launcher.pid) for each in everyone for c in each.net_connections("tcp")
                     if c.status == psutil.CONN_LISTEN]
        return f"listening {sorted(set(open_ones))}"
"""


@pytest.mark.timeout(200)
def test_all_that_listens_on_one_machine_listens_on_the_loopback(workplace: Workplace) -> None:
    workplace.write("mine.py", TASK)
    workplace.write(
        "mine.yaml",
        "task: mine.py:Mine\nglobal_batch_size: 8\nmicro_batch_size: 4\nsteps: 3\noptimizer: {name: sgd, lr: 1e-3}\n",
    )
    done = workplace.samestep("launch", "mine.yaml", "--run", "one", "--processes", "2")
    assert done.code == 0, done.out + done.err
    assert "listening [('127.0.0.1', False), ('127.0.0.1', True)]" in done.out  # the ranks, for each other; and the store
