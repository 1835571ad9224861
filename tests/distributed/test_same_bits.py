"""The SHA-256 of the weights after 50 steps and more is the same at every world size from 1 to V = 8.

Each case runs here at one process and at another size, so that together they cover them all. All sizes for each case:
`bash tests/run.sh -m long tests/distributed/test_same_bits.py`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from conftest import Finished, Workplace

HERE = Path(__file__).parent
TEXT = (
    "task: text\nwith: {context: 32, width: 60, layers: 2, heads: 3, dropout: 0.1, shown: 0}\n"
    "global_batch_size: 16\nmicro_batch_size: 2\nsteps: 50\nclip: 1.0\n"
    "optimizer: {name: adamw, lr: 3e-3}\nevaluate: {every: 20, batches: 5}\n"
)
DIGITS = (
    "task: digits\nwith: {channels: 6, dropout: 0.2}\nglobal_batch_size: 64\nmicro_batch_size: 8\nsteps: 55\n"
    "optimizer: {name: adamw, lr: 2e-3}\nevaluate: {every: 20}\n"
)
OWN = "global_batch_size: 24\nmicro_batch_size: 3\nsteps: 50\noptimizer: {name: adamw, lr: 1e-2}\nclip: 0.5\n"
SEED = "task: regression\nglobal_batch_size: 32\nmicro_batch_size: 4\nepochs: 13\noptimizer: {name: adam, lr: 1e-3}\n"
CASES: dict[str, tuple[str, list[int]]] = {
    "gpt-dropout-clip": (TEXT, [5]),
    "gpt-bf16": (TEXT + "precision: bf16\n", [4]),
    "gpt-leaves": (TEXT + "leaves: 4\n", [3]),
    "cnn-batchnorm-dropout": (DIGITS, [8]),
    "cnn-sgd": (DIGITS.replace("{name: adamw, lr: 2e-3}", "{name: sgd, lr: 0.05, momentum: 0.9, nesterov: true}"), [2]),
    "regression-short-last-batch": (SEED, [7]),
    "random-transform": (f"task: {HERE}/bit_tasks.py:Augmented\n{OWN}", [6]),
    "random-transform-workers": (f"task: {HERE}/bit_tasks.py:Augmented\n{OWN}workers: 1\n", [2]),
    "several-buckets": (f"task: {HERE}/bit_tasks.py:Wide\n{OWN}".replace("adamw, lr: 1e-2", "adamw, lr: 1e-4"), [3]),
    "recomputed": (f"task: {HERE}/bit_tasks.py:Recomputed\n{OWN}", [4]),
    "hard": (f"task: {HERE}/bit_tasks.py:Hard\n{OWN}evaluate: {{every: 17}}\n", [3]),
}
_OFTEN_DRAWN = {"gpt-leaves", "cnn-sgd", "random-transform", "recomputed"}  # in tests/promise: here by command alone
COMPILED = TEXT.replace("steps: 50", "steps: 50\ncompile: true")


def weights(workplace: Workplace, config: str, processes: int) -> str:
    workplace.write("case.yaml", config)
    name = f"on-{processes}"
    done: Finished = workplace.train(
        "case.yaml", "--run", name, "track={every: 5, wandb: 'off'}", processes=processes, timeout=400
    )
    assert done.code == 0, done.err[-3000:]
    assert workplace.state(name)["world_size"] == processes
    assert workplace.state(name)["step"] >= 50
    return done.weights


@pytest.mark.timeout(600)  # eight processes on two busy cores take their time; a command has less of it
@pytest.mark.parametrize("name", [name for name in CASES if name not in _OFTEN_DRAWN])
def test_the_weights_are_the_same_bits_on_one_process_and_on_others(workplace: Workplace, name: str) -> None:
    config, sizes = CASES[name]
    found = {size: weights(workplace, config, size) for size in (1, *sizes)}
    assert len(set(found.values())) == 1, found


@pytest.mark.timeout(900)  # the compiler takes its time beside other tests
def test_compiled_blocks_keep_the_bits(workplace: Workplace) -> None:
    found = {size: weights(workplace, COMPILED, size) for size in (1, 2)}
    assert len(set(found.values())) == 1, found


def test_a_backward_within_the_backward_is_refused(workplace: Workplace) -> None:
    workplace.write("case.yaml", f"task: {HERE}/bit_tasks.py:Recomputed\nwith: {{reentrant: true}}\n{OWN}")
    done = workplace.train("case.yaml")
    assert done.code == 2
    assert "use_reentrant=True; write use_reentrant=False" in done.err


def test_the_hash_can_tell_two_runs_apart(workplace: Workplace) -> None:
    assert weights(workplace, SEED, 1) != weights(workplace, SEED.replace("1e-3", "1.0001e-3"), 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*CASES, "gpt-compiled"])
def test_every_world_size_gives_the_same_bits(workplace: Workplace, name: str) -> None:
    config = CASES[name][0] if name in CASES else COMPILED
    sizes = range(1, 5) if "leaves" in config else range(1, 9)
    found = {size: weights(workplace, config, size) for size in sizes}
    print(name, *(f"{size}:{value[:16]}" for size, value in found.items()))
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_work_under_a_long_temporary_folder(workplace: Workplace, processes: int) -> None:
    """They hand tensors over at a socket there, whose path must fit into 107 bytes; a job's own $TMPDIR may be longer."""
    workplace.env["TMPDIR"] = str(workplace.path / ("t" * 120))
    Path(workplace.env["TMPDIR"]).mkdir()
    workplace.write("case.yaml", f"task: {HERE}/bit_tasks.py:Augmented\n{OWN}workers: 1\n")
    done = workplace.train("case.yaml", "track.wandb=off", processes=processes, timeout=100)
    assert done.code == 0, done.err


@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_leave_no_folder_behind(workplace: Workplace, processes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="s-") as folder:  # a short one
        workplace.env["TMPDIR"] = folder
        workplace.write("case.yaml", f"task: {HERE}/bit_tasks.py:Augmented\n{OWN}workers: 1\n")
        done = workplace.train("case.yaml", "track.wandb=off", processes=processes, timeout=100)
        assert done.code == 0, done.err
        assert not [*Path(folder).glob("pymp-*")]
