"""A sharded run has the bits of an unsharded one, at whatever size, and may go on as the other.

All sizes for each case: `bash tests/run.sh -m long tests/distributed/test_sharding.py -s`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Workplace

HERE = Path(__file__).parent
SETTINGS = (
    "clip: 0.5\nschedule: {name: cosine, warmup: 3, floor: 0.1}\ntrack: {every: 1, wandb: 'off', fingerprint: parameters}\n"
)
TEXT = (
    f"task: {HERE}/shard_tasks.py:Written\nwith: {{context: 32, width: 60, layers: 2, heads: 3, dropout: 0.1, shown: 40}}\n"
    "global_batch_size: 16\nmicro_batch_size: 2\nsteps: 10\noptimizer: {name: adamw, lr: 3e-3}\n"
    "evaluate: {batches: 5}\n" + SETTINGS
)
CHAIN = (
    f"task: {HERE}/shard_tasks.py:Chain\nglobal_batch_size: 24\nmicro_batch_size: 2\nepochs: 4\n"
    "optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.1}\nevaluate: {every: 5}\naudit: {every: 4}\n" + SETTINGS
)
PRETRAINED = (
    f"task: {HERE}/shard_tasks.py:Pretrained\nglobal_batch_size: 16\nmicro_batch_size: 2\nsteps: 8\n"
    "optimizer: {name: sgd, lr: 1e-2, momentum: 0.9}\n" + SETTINGS
)
IMAGES = (
    "task: digits\nwith: {channels: 7}\nglobal_batch_size: 24\nmicro_batch_size: 2\nsteps: 10\n"
    "optimizer: {name: sgd, lr: 1e-2, momentum: 0.9, nesterov: true}\nevaluate: {batches: 5}\n" + SETTINGS
)
CASES: dict[str, tuple[str, list[int]]] = {  # of CHAIN and IMAGES a step has twelve micro-batches, of the others eight
    "gpt": (TEXT, [2]),
    "gpt-bf16": (TEXT + "precision: bf16\n", [3]),
    "batchnorm-unused-tied-frozen": (CHAIN, [5]),
    "leaves": (CHAIN + "leaves: 4\n", [3]),
    "cnn": (IMAGES, [3]),
    "cnn-bf16": (IMAGES + "precision: bf16\n", [3]),
    "transformers": (PRETRAINED, [4]),
    "transformers-bf16": (PRETRAINED + "precision: bf16\n", [2]),
}
QUICK = {"gpt", "batchnorm-unused-tied-frozen", "transformers"}  # the others are drawn often by tests/promise
NODES = {"gpt": "abab", "batchnorm-unused-tied-frozen": "aabbcc", "transformers": "aabb"}
UNTIMED = ("step", "loss", "lr", "grad_norm", "fingerprint", "fingerprints", "half")


def trained(workplace: Workplace, config: str, processes: int, *words: str) -> tuple[str, list[Any]]:
    workplace.write("case.yaml", config)
    name = "-".join([str(processes), *(word.partition("=")[0] for word in words)])
    done = workplace.train("case.yaml", "--run", name, *words, processes=processes, timeout=250)
    assert done.code == 0, done.out[-1000:] + done.err[-3000:]
    return done.weights, rows_of(workplace, name)


def rows_of(workplace: Workplace, name: str) -> list[Any]:
    rows = workplace.metrics(name)
    return [{key: row.get(key) for key in (*UNTIMED, "eval_loss", "eval_bits_per_byte")} for row in rows]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_sharded_run_has_the_bits_of_an_unsharded_one(workplace: Workplace, name: str) -> None:
    config, sizes = CASES[name]
    expected = trained(workplace, config, 1)
    for size in sizes:
        assert trained(workplace, config, size, "shard=true", "recompute=true") == expected
    workplace.env["NODES"] = NODES[name]
    assert trained(workplace, config, len(NODES[name]), "shard=node") == expected


@pytest.mark.timeout(300)
def test_leaves_that_end_short_and_a_forward_computed_again_change_nothing(workplace: Workplace) -> None:
    """In chosen steps a counter has the forward computed again; it leaves no gradients, whole parameters or prints."""
    config = CHAIN.replace(":Chain", ":Counting").replace("every: 5", "every: 2").replace("every: 4", "every: 2")
    expected = trained(workplace, config + "leaves: 4\n", 1)
    assert trained(workplace, config + "leaves: 4\n", 3, "shard=true") == expected


@pytest.mark.timeout(400)
def test_a_run_goes_on_sharded_or_not_as_if_nothing_had_been(workplace: Workplace) -> None:
    config = CHAIN + "checkpoint: {every: 10, background: true}\n"
    expected = trained(workplace, config, 1)
    words = ["case.yaml", "--run", "moved"]
    workplace.env |= {"DIES_AT": "16", "NODES": "aabb"}  # of rank 0's three micro-batches a step
    broken = workplace.train(*words, "shard=node", processes=4, timeout=200)
    assert broken.code != 0
    reached = workplace.state("moved")["step"]
    assert 2 <= reached < 6
    assert f"the ranks of this node have saved step {reached}: no finished step is lost" in broken.out + broken.err
    assert "rank 2 saved step" in workplace.state("moved")["reason"]
    workplace.env["DIES_AT"] = "30"  # of twelve
    assert workplace.train(*words).code != 0
    del workplace.env["DIES_AT"], workplace.env["NODES"]
    done = workplace.train(*words, "shard=true", "recompute=true", processes=3, timeout=200)
    assert done.code == 0, done.err
    assert (done.weights, rows_of(workplace, "moved")) == expected


@pytest.mark.parametrize("early", ["true", "false"])
def test_what_one_rank_alone_raises_while_it_is_looked_at_again_is_nobodys_business(workplace: Workplace, early: str) -> None:
    config = (
        CHAIN.replace(":Chain", f":Startled\nwith: {{early: {early}}}")
        .replace("epochs: 4", "epochs: 1")
        .replace("audit: {every: 4}", "audit: false")
    )
    expected = trained(workplace, config, 1)
    assert trained(workplace, config, 2, "shard=true") == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CHAIN.replace(":Chain", ":Changing"), "shard: the task has an after_step, which changes whole parameters"),
        (CHAIN.replace("adamw", "adafactor"), "shard: Adafactor may need whole parameters to step"),
        (CHAIN.replace(":Chain", ":Chain\nwith: {skips: true}"), "shard: the forward went through other blocks on one rank"),
        (CHAIN.replace(":Chain", ":Chain\nwith: {in_evaluation: true}"), "shard: the forward went through other blocks on one"),
        (CHAIN.replace(":Chain", ":OneMemory"), "shard: other and outward.weight lie in one memory, which would be cut"),
        (CHAIN.replace(":Chain", ":Around"), "shard: the loss reaches past model(…)"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_line(workplace: Workplace, config: str, words: str) -> None:
    workplace.write("case.yaml", config + "watchdog: 20\n")
    done = workplace.train("case.yaml", "shard=true", processes=2, timeout=150)
    assert done.code != 0
    assert words in done.err + done.out, done.err[-3000:]
    assert "EnforceNotMet" not in done.err  # a rank that met another's message


def test_nodes_with_unequal_numbers_of_processes_are_told_what_to_write(workplace: Workplace) -> None:
    workplace.write("case.yaml", CHAIN)
    workplace.env["NODES"] = "aab"
    done = workplace.train("case.yaml", "shard=node", processes=3)
    assert done.code != 0
    assert "shard: found node, and nodes with 1 and 2 processes; start as many on each, or write shard=true" in done.err
    assert not any((workplace.path / "runs").glob("*"))


def test_the_sharded_sum_forced_in_one_process_equals_the_local_fold(workplace: Workplace) -> None:
    """As tests/gpu has it over NCCL."""
    script = str(HERE.parent / "gpu/forced_shards.py")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    done = workplace.command(sys.executable, *launcher, script, "cpu:gloo")
    assert done.code == 0, done.err
    assert done.out == "the same\n"


@pytest.mark.timeout(300)
def test_a_training_state_larger_than_a_process_may_have_trains_sharded(workplace: Workplace) -> None:
    """Parameters, gradients and moments are four times the parameters; a process may have 3.5 times."""
    workplace.write(
        "case.yaml",
        f"task: {HERE}/shard_tasks.py:Limited\nglobal_batch_size: 4\nmicro_batch_size: 1\nsteps: 2\ndevice: cpu\n"
        "optimizer: {name: adamw, lr: 1e-4}\ntrack: {wandb: 'off'}\n",
    )
    whole = workplace.train("case.yaml", "--run", "whole", processes=4, timeout=250)
    assert whole.code != 0
    assert "can't allocate memory" in whole.err + whole.out
    done = workplace.train("case.yaml", "--run", "cut", "shard=true", processes=4, timeout=250)
    assert done.code == 0, done.err[-3000:]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_all_sizes(workplace: Workplace, name: str) -> None:
    config, _ = CASES[name]
    sizes = [2, 3, 4] if name == "leaves" else [2, 3, 5, 7, 12] if name.startswith(("batchnorm", "cnn")) else list(range(2, 9))
    expected, rows = trained(workplace, config, 1)
    for size in sizes:
        for words in (["shard=true"], ["shard=true", "recompute=true"]):
            assert trained(workplace, config, size, *words) == (expected, rows), (size, words)
    print(f"\n{name}: {expected[:16]} on 1 unsharded, {', '.join(map(str, sizes))} sharded, recomputed and not", flush=True)
