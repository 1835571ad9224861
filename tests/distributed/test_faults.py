"""Planted faults are found, and the step is named: by verify, diff, replay and audit."""

from __future__ import annotations

import re

import pytest

from conftest import Workplace

TASK = """
import os, time
import datasets, numpy as np, samestep, torch
from samestep import Task

before = 0  # the last call's step: no attribute, whose change would be seen at once

class Faulty(Task):
    fault: str = "none"

    def data(self, split):
        rng = np.random.default_rng(0)
        return datasets.Dataset.from_dict({"x": rng.standard_normal((640, 5), dtype=np.float32)}) if split == "train" else None

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss(self, model, batch):
        global before
        x, rank, step = batch["x"], os.environ.get("RANK", "0"), samestep.step()
        is_first, before = step != before, step
        if self._handle:
            self._handle.remove()
            self._handle = None
        if self.fault == "unseeded" and step == 3:
            x = x + torch.from_numpy(np.random.default_rng().standard_normal(5).astype(np.float32))
        if self.fault == "rank":
            x = x + int(rank)
        out = model(x).square().sum()
        if self.fault == "flip" and rank == "1" and step == 4 and is_first:
            self._handle = next(model.parameters()).register_hook(flipped)
        if self.fault == "cut" and hasattr(model, "reshard") and step == 4:
            out.register_hook(lambda grad: grad * 1.0001)
        return out, len(x)

    _handle: object = None

def flipped(grad):
    grad = grad.clone()
    grad.view(torch.int32)[0, 0] ^= 1 << 20
    return grad
"""
CONFIG = """
task: faulty.py:Faulty
global_batch_size: 64
micro_batch_size: 8
steps: 8
optimizer: {name: adamw, lr: 1e-3}
track: {every: 1, wandb: 'off', fingerprint: parameters}
audit: false
"""


@pytest.fixture
def faulty(workplace: Workplace) -> Workplace:
    workplace.write("faulty.py", TASK)
    workplace.write("faulty.yaml", CONFIG)
    return workplace


def test_verify_finds_an_unseeded_call_and_says_what_it_looks_like(faulty: Workplace) -> None:
    done = faulty.samestep("verify", "faulty.yaml", "--processes", "1", "with.fault=unseeded")
    assert done.code == 1
    assert re.search(r"1 again .*step 3: loss", done.err), done.err
    assert "part in the loss of step 3. That looks like an unseeded random call" in done.err


def test_verify_finds_a_task_that_reads_its_rank(faulty: Workplace) -> None:
    done = faulty.samestep("verify", "faulty.yaml", "--processes", "1,2", "with.fault=rank")
    assert done.code == 1
    assert "others part in the loss of step 1. That looks like a loss that depends on the batch as a whole" in done.err


def test_verify_finds_a_flipped_bit_and_names_the_gradient(faulty: Workplace) -> None:
    done = faulty.samestep("verify", "faulty.yaml", "--processes", "1,2", "with.fault=flip")
    assert done.code == 1
    assert re.search(r"^ +2 .*step 4: .*0\.weight", done.err, re.MULTILINE), done.err
    assert "the loss of step 4 agrees and its gradients part" in done.err


def test_verify_finds_what_is_other_where_it_is_sharded_alone(faulty: Workplace) -> None:
    done = faulty.samestep("verify", "faulty.yaml", "--processes", "2", "--shard", "with.fault=cut")
    assert done.code == 1
    assert re.search(r"^ +2 again .* none$\n^ +2 sharded .*step 4: grad_norm", done.err, re.MULTILINE), done.err
    assert "unsharded runs agree at every size, and sharded ones part at step 4" in done.err


def test_verify_of_a_sound_task_says_so(faulty: Workplace) -> None:
    done = faulty.samestep("verify", "faulty.yaml", "--processes", "1,3", "--steps", "3", "--shard")
    assert done.code == 0, done.err
    assert re.search(r"^ +3 sharded .* none$", done.out, re.MULTILINE)
    assert "all the same: 3 steps on 1, 3 processes, sharded and not" in done.out


def test_diff_and_replay_find_a_flipped_bit(faulty: Workplace) -> None:
    assert faulty.train("faulty.yaml", "--run", "sound").code == 0
    assert faulty.train("faulty.yaml", "--run", "flipped", "with.fault=flip", processes=2).code == 0
    parted = faulty.samestep("diff", "sound", "flipped")
    assert parted.code == 1
    assert parted.out.startswith("the runs part at step 4 (the same at step 3)")
    assert "  fingerprint: " in parted.out
    assert "config with: {} | {'fault': 'flip'}" in parted.out
    replayed = faulty.samestep("replay", "flipped", "--step", "6")
    assert replayed.code == 1
    assert re.search(r"samestep: step 4: (grad_norm|fingerprint) was recorded as .* and is", replayed.err), replayed.err
    same = faulty.samestep("diff", "sound", "sound")
    assert same.code == 0
    assert same.out.startswith("the same at all 8 rows that both tracked")


def test_replay_lays_a_step_of_a_sound_run_open(faulty: Workplace) -> None:
    assert faulty.train("faulty.yaml", "--run", "sound", "checkpoint={every: 3, background: false}", processes=2).code == 0
    done = faulty.samestep("replay", "sound", "--step", "5")
    assert done.code == 0, done.err
    assert done.out.startswith("replaying from the start to step 5")  # keep: 2 leaves steps 6 and 8
    assert done.out.count("  micro-batch ") == 8
    assert "5 tracked steps were checked against the record, and all are the same bits" in done.out
    last = faulty.samestep("replay", "sound", "--step", "8")
    assert last.out.startswith("replaying from step 6 to step 8")
    assert last.out.rstrip().endswith(f"weights {faulty.state('sound')['weights']}")
    assert faulty.samestep("replay", "sound", "--step", "99").err.startswith("samestep: --step: found 99; the run has finished")


def test_replay_finds_an_unseeded_call(faulty: Workplace) -> None:
    assert faulty.train("faulty.yaml", "--run", "random", "with.fault=unseeded").code == 0
    done = faulty.samestep("replay", "random", "--step", "5")
    assert done.code == 1
    assert "samestep: step 3: loss was recorded as" in done.err


@pytest.mark.parametrize(
    ("fault", "words", "step"),
    [
        ("unseeded", r"micro-batch 0 was computed once more on rank 0 \(.* cpu:0\), and its loss came out otherwise", 3),
        ("flip", r"micro-batch 4 was computed once more on rank 1 \(.* cpu:0\), and a gradient came out otherwise", 4),
        ("rank", r"the audit found another loss of the same micro-batch on rank 1 \(.* cpu:0\) and on rank 0 \(.* cpu:0\)", 1),
    ],
)
def test_the_audit_names_step_ranks_and_hosts(faulty: Workplace, fault: str, words: str, step: int) -> None:
    # The audit computes two micro-batches more in each step, which the task's own count of calls has to know.
    faulty.write("faulty.py", TASK.replace("a_step = 8", "a_step = (2 * 2 + 8)"))
    done = faulty.train("faulty.yaml", "--run", "audited", "audit={every: 1}", f"with.fault={fault}", processes=2)
    assert done.code == 1
    reason = faulty.state("audited")["reason"]
    assert re.search(f"step {step}: {words}", reason), reason
    assert [row["step"] for row in faulty.metrics("audited") if "loss" in row] == list(range(1, step))


def test_a_sound_task_passes_the_audit_and_its_bits_do_not_change(faulty: Workplace) -> None:
    faulty.write("faulty.py", TASK.replace("calls = 0", "calls = -1000"))
    plain = faulty.train("faulty.yaml", "--run", "plain").weights
    for processes in (1, 3):
        audited = faulty.train("faulty.yaml", "--run", f"on-{processes}", "audit={every: 2}", processes=processes)
        assert audited.weights == plain, audited.err


def test_a_buffer_that_has_no_meaning_across_micro_batches_is_named(faulty: Workplace) -> None:
    faulty.write(
        "faulty.py",
        TASK.replace("torch.nn.Tanh()", "Counting()")
        + """
class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
    def forward(self, x):
        self.average = self.average * 0.9 + x.detach().mean() * 0.1
        return x
""",
    )
    done = faulty.train("faulty.yaml", "--run", "buffer")
    assert done.code == 2
    assert "the forward changed the buffer 1.average, and each micro-batch made another value of it" in done.err


def test_an_operation_without_a_deterministic_kernel_is_named(faulty: Workplace) -> None:
    faulty.write(
        "faulty.py",
        TASK.replace("out = model(x)", "x = x.clone().put_(torch.tensor([0]), torch.ones(1))\n        out = model(x)"),
    )
    done = faulty.train("faulty.yaml", "--run", "put")
    assert done.code == 2
    assert "samestep: task: put_" in done.err, done.err
    assert "write reduce=fast" in done.err
    assert faulty.train("faulty.yaml", "--run", "fast", "reduce=fast").code == 0


@pytest.mark.parametrize(("key", "words"), [("instructions", []), ("norm", []), ("norm", ["reduce=fast"])])
def test_a_job_of_mixed_kinds_is_refused(faulty: Workplace, key: str, words: list[str]) -> None:
    """In fast mode what replicas step by still has to be the same on each: the norm."""
    faulty.write(
        "faulty.py",
        TASK
        + f"""
import samestep.session.run as run
kind_of = run.kind_of
run.kind_of = lambda device: {{**kind_of(device), {key!r}: "rank " + os.environ.get("RANK", "0")}}
""",
    )
    done = faulty.train("faulty.yaml", "--run", "mixed", *words, processes=2)
    assert done.code != 0
    assert f"samestep: devices: rank 1 is of another kind than rank 0 ({key} was rank 0 and is rank 1)" in done.err
    if key == "instructions":
        assert faulty.train("faulty.yaml", "--run", "fast", "reduce=fast", processes=2).code == 0
