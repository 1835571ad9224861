"""What users of other tools have reported, by kinds: the same at every world size and after every resume, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ranks import HERE, Ranks

from samestep.run.metric_rows import timeless

CONFIG = """
task: case_tasks.py:{task}
global_batch_size: 8
micro_batch_size: 2
steps: {steps}
seed: 1
optimizer: {{name: adamw, lr: 1e-2}}
track: {{every: 1, wandb: off}}
"""
SCHEDULED = ["schedule={name: cosine, warmup: 3, floor: 0.1}", "clip=1.0"]


@dataclass
class Outcome:
    """One start of a run: the exit codes of its ranks, what they said, and what stands in its folder."""

    codes: list[int]
    out: str
    err: str
    folder: Path

    @property
    def weights(self) -> str:
        assert set(self.codes) == {0}, self.err + self.out
        return self.out.rstrip("\n").rpartition("weights ")[2]

    @property
    def rows(self) -> list[dict[str, Any]]:
        text = (self.folder / "metrics.jsonl").read_text()
        return [timeless(json.loads(line)) for line in text.splitlines()]


class Cases:
    """A folder with the tasks, and the ranks to start in it."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self._ranks = folder, ranks
        shutil.copy(HERE / "case_tasks.py", folder)

    def start(
        self, task: str, *words: str, size: int = 1, run: str = "", steps: int = 6, env: dict[str, str] | None = None
    ) -> Outcome:
        name = run or f"on-{size}"
        (self.folder / "case.yaml").write_text(CONFIG.format(task=task, steps=steps))
        job = {"folder": str(self.folder), "name": name, "world_size": size, "env": env or {}}
        answer = self._ranks.ask({**job, "words": ["case.yaml", "--run", name, *words]})
        assert not answer["stuck"], answer
        out, err = ("".join(said) for said in zip(*answer["said"], strict=True))
        return Outcome(answer["codes"], out, err, self.folder / "runs" / name)


COUNTED = "audit=false"  # the task counts its calls, to do something at a certain one, and a look would be one more


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


@pytest.fixture
def cases(tmp_path: Path, ranks: Ranks) -> Cases:
    return Cases(tmp_path, ranks)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("Base", ["global_batch_size=10"]),
        ("Random", ["evaluate.every=2"]),
        ("Transformed", []),
        ("EmptyBuffer", []),
        ("Pinn", ["with.allowed=true"]),
        ("Split", []),
        ("HalfOutput", ["precision=bf16"]),
        ("Complex", []),
        ("Inner", []),
        ("Parts", []),
        ("LaterPart", ["optimizer={name: sgd, lr: 0.01, momentum: 0.9}"]),
        ("WithoutTheModel", []),
        ("HeadOnly", ["clip=0.05"]),
        ("FrozenNorm", ["evaluate.every=2"]),
        ("SometimesNormed", []),
        ("SometimesNormed", ["global_batch_size=6"]),
        ("Spectral", []),
        ("Hooked", []),
        ("Averaging", ["with.what=unread"]),
        ("Averaging", ["with.what=mask"]),
        ("Averaging", ["with.what=none"]),
        ("Changing", ["evaluate.every=2", "with={}"]),
        ("Hidden", ["with.place=rows in place"]),
    ],
)
def test_the_same_at_every_world_size(cases: Cases, task: str, words: list[str]) -> None:
    alone, three = cases.start(task, *words), cases.start(task, *words, size=3)
    assert alone.weights == three.weights
    assert alone.rows == three.rows


def test_the_order_of_a_set_is_the_same_in_every_process(cases: Cases) -> None:
    alone, two = cases.start("FromASet"), cases.start("FromASet", size=2)
    assert alone.weights == two.weights


def stopped_and_resumed(
    cases: Cases, task: str, *words: str, sizes: tuple[int, int] = (1, 1), **env: str
) -> tuple[Outcome, Outcome]:
    """An unbroken run of ten steps, and one that is stopped in the fifth and goes on."""
    whole = cases.start(task, *words, run="whole", steps=10)
    env = env or {"CASE_END": f"SIGTERM {18 if sizes[0] == 1 else 9}"}
    broken = cases.start(task, *words, run="part", steps=10, size=sizes[0], env=env)
    assert set(broken.codes) <= {75, 1}, broken.err
    assert set(broken.codes) != {0}
    part = cases.start(task, *words, run="part", steps=10, size=sizes[1])
    assert "resumed from step" in part.out
    return whole, part


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    "schedule",
    ["{name: linear}", "{name: cosine, warmup: 2, floor: 0.1}", "{name: constant, warmup: 8}", "{name: constant}"],
)
def test_a_resumed_run_has_the_unbroken_runs_rate_at_every_step(cases: Cases, schedule: str, sizes: tuple[int, int]) -> None:
    whole, part = stopped_and_resumed(cases, "Base", f"schedule={schedule}", sizes=sizes)
    assert [row["lr"] for row in part.rows] == [row["lr"] for row in whole.rows]
    assert part.weights == whole.weights


@pytest.mark.parametrize("kind", ["list", "dict", "tuple", "own", "master", "noise"])
def test_an_optimizers_whole_state_comes_back_as_it_was(cases: Cases, kind: str) -> None:
    whole, part = stopped_and_resumed(cases, "OwnState", f"with.kind={kind}", *SCHEDULED, sizes=(2, 1))
    assert part.rows == whole.rows
    assert part.weights == whole.weights


@pytest.mark.parametrize("name", ["adamw", "sgd, momentum: 0.9, nesterov: true", "adam, amsgrad: true", "rmsprop"])
def test_state_comes_back_in_the_layout_that_its_parameter_has(cases: Cases, name: str) -> None:
    whole, part = stopped_and_resumed(cases, "Layouts", f"optimizer={{name: {name}, lr: 0.01}}", sizes=(2, 1))
    assert part.rows == whole.rows
    assert part.weights == whole.weights


def test_what_after_step_changes_is_saved_and_comes_back(cases: Cases) -> None:
    whole, part = stopped_and_resumed(cases, "Changing", "evaluate.every=2", *SCHEDULED, sizes=(2, 3))
    assert part.rows == whole.rows
    assert part.weights == whole.weights


@pytest.mark.parametrize(("micro_batch_size", "size"), [(8, 1), (2, 1), (2, 2)])
def test_a_save_after_a_fault_holds_the_finished_step_alone(cases: Cases, micro_batch_size: int, size: int) -> None:
    words = [f"micro_batch_size={micro_batch_size}", "watchdog=20", COUNTED]
    call = 5 if micro_batch_size == 8 else 18 if size == 1 else 9
    whole = cases.start("PassingFault", *words, run="whole", steps=10)
    broken = cases.start("PassingFault", *words, run="part", steps=10, size=size, env={"CASE_FAIL": str(call)})
    assert 1 in broken.codes
    assert "has saved step 4" in broken.out
    part = cases.start("PassingFault", *words, run="part", steps=10)
    assert part.weights == whole.weights


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_a_quiet_write_of_after_steps_is_saved_after_a_fault(cases: Cases, micro_batch_size: int) -> None:
    words = [f"micro_batch_size={micro_batch_size}", COUNTED]
    broken = cases.start("QuietAverage", *words, run="part", steps=14)
    assert "has saved step 10" in broken.out
    mended = cases.start("QuietAverage", *words, run="part", steps=14, env={"CASE_MENDED": "1"})
    whole = cases.start("QuietAverage", *words, run="whole", steps=14, env={"CASE_MENDED": "1"})
    assert mended.rows == whole.rows
    assert mended.weights == whole.weights


def test_nan_is_never_best(cases: Cases) -> None:
    words = ["with.scores=[5.0, 1.0, -1.0, 3.0, 7.0, 9.0]", "evaluate.every=2"]
    keeping = ["checkpoint={best: score, keep: 1, every: 2, background: false}"]
    found = cases.start("Scored", *words, *keeping, steps=12, size=2)
    assert found.weights
    assert sorted(path.name for path in (found.folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000012"]
    assert [row["eval_score"] for row in found.rows if "eval_score" in row] == [5.0, 1.0, None, 3.0, 7.0, 9.0]
    assert "WARNING: eval_score is nan at step 6: no row counts for it (weight 0)" in found.out
    rows = cases.start("Scored", *words, steps=12).rows
    assert rows == found.rows
    assert all(row["eval_sometimes"] for row in rows if "eval_score" in row)


def test_nan_is_never_better(cases: Cases) -> None:
    words = ["with.scores=[-1.0, 5.0, 4.0, 3.0, 2.0, 1.0]", "evaluate.every=2"]
    found = cases.start("Scored", *words, "converge={metric: score, goal: min, patience: 3}", steps=12)
    assert found.rows[-1]["step"] == 12
    worse = cases.start("Scored", "with.scores=[5.0, -1.0, -1.0, -1.0, 1.0, 1.0]", "evaluate.every=2",
                        "converge={metric: score, goal: min, patience: 3}", steps=12, run="worse")  # fmt: skip
    assert worse.rows[-1]["step"] == 8


def test_a_resumed_run_goes_on_waiting_for_something_better(cases: Cases) -> None:
    words = ["with.scores=[5.0, -1.0, -1.0, -1.0, 1.0, 1.0]", "evaluate.every=2"]
    words += ["converge={metric: score, goal: min, patience: 3}", COUNTED]
    whole = cases.start("Scored", *words, run="whole", steps=12)
    cases.start("Scored", *words, run="part", steps=12, env={"CASE_END": "SIGTERM 26"})
    part = cases.start("Scored", *words, run="part", steps=12)
    assert "resumed from step 7" in part.out
    assert part.rows == whole.rows
    assert part.rows[-1]["step"] == 8


@pytest.mark.parametrize("size", [1, 2])
def test_an_evaluation_that_a_stop_broke_off_is_made_by_the_next_start(cases: Cases, size: int) -> None:
    words = ["with.scores=[5.0, 4.0, 3.0, 2.0]", "evaluate.every=2", COUNTED]
    whole = cases.start("StoppedInEvaluation", *words, run="whole", steps=8)
    broken = cases.start("StoppedInEvaluation", *words, run="part", steps=8, size=size, env={"CASE_MEASURED": "5"})
    assert 0 not in broken.codes
    part = cases.start("StoppedInEvaluation", *words, run="part", steps=8, size=size)
    assert "resumed from step 4" in part.out or size == 2
    assert part.rows == whole.rows


@pytest.mark.parametrize("size", [1, 2])
def test_a_rate_on_a_plateau_goes_on_where_a_stop_broke_off_its_evaluation(cases: Cases, size: int) -> None:
    words = ["with.scores=[5.0, 6.0, 6.0, 4.0, 6.0]", "schedule={name: plateau, metric: score, patience: 0, factor: 0.5}"]
    words += ["evaluate.every=2", COUNTED]
    whole = cases.start("StoppedInEvaluation", *words, run="whole", steps=10)
    cases.start("StoppedInEvaluation", *words, run="part", steps=7, size=size, env={"CASE_MEASURED": "5"})
    cases.start("StoppedInEvaluation", *words, run="part", steps=7, size=size)  # whose last evaluation no longer run has
    part = cases.start("StoppedInEvaluation", *words, run="part", steps=10)
    assert "resumed from step 7" in part.out
    rates = [row["lr"] for row in part.rows if "lr" in row]
    assert rates == [1e-2] * 4 + [0.5e-2] * 2 + [0.25e-2] * 4
    assert [row for row in part.rows if "eval_score" not in row or row["step"] != 7] == whole.rows
    assert part.weights == whole.weights


def test_a_signal_to_one_rank_stops_all(cases: Cases) -> None:
    broken = cases.start("Signalled", run="part", size=2, env={"CASE_END": "SIGTERM 7"})
    assert set(broken.codes) == {75}, broken.err
    assert cases.start("Signalled", run="part", size=2).weights == cases.start("Signalled").weights


@pytest.mark.parametrize(
    ("task", "words", "line"),
    [
        ("Counting", [], "task: the forward changed the buffer seen, and each micro-batch made another value of it"),
        ("Averaging", ["with.what=mean"], "task: the forward changed the buffer mean, and each micro-batch made another"),
        ("Averaging", ["with.what=late"], "task: the forward made the buffer late; make it in model()"),
        ("Averaging", ["with.what=steps"], "task: the loss depends on model.steps, which the forward"),
        ("Averaging", ["with.what=steps", "micro_batch_size=8"], "task: the loss depends on model.steps, which the forward"),
        ("Averaging", ["with.what=frozen"], "task: the forward changed the parameter frozen, which would depend on how"),
        ("Averaging", ["with.what=weight"], "task: the forward changed the parameter weight, which would depend on how"),
        ("Averaging", ["with.what=requires_grad"], "task: the forward changed requires_grad of bias; do that in after_step"),
        ("Averaging", ["with.what=mode"], "task: the forward changed train() or eval() of model; do that in after_step"),
        ("Averaging", ["with.what=calls"], "task: the loss depends on model.calls, which the forward changes"),
        ("Averaging", ["with.what=gradient"], "task: the loss depends on model.calls, which the forward changes"),
        ("Averaging", ["with.what=past"], "task: the loss depends on model.past, which the forward changes"),
        ("Averaging", ["with.what=kept"], "task: the loss depends on model.kept, which the forward changes"),
        ("Averaging", ["with.what=generator"], "task: the loss depends on model.generator, which the forward"),
        ("Averaging", ["with.what=data"], "task: the forward changed the buffer mean, and each micro-batch made another"),
        ("Averaging", ["with.what=norm"], "task: the forward changed the buffer mean, and each micro-batch made another"),
        ("AveragingFew", ["with.what=mean"], "task: the forward changed the buffer mean, and each micro-batch made another"),
        ("Averaging", ["with.what=scalar"], "task: the loss depends on model.scalar, which the forward changes"),
        ("Averaging", ["with.what=state"], "task: the loss depends on model.state, which the forward changes"),
        ("Averaging", ["with.what=meter"], "task: the loss depends on model.meter, which the forward changes"),
        ("Averaging", ["with.what=calls", "micro_batch_size=8"], "task: the loss depends on model.calls, which the forward"),
        ("Beside", ["with.where=loss"], "task: the forward changed self._teacher, which no checkpoint holds; make it a part"),
        ("BesideAfterStep", ["with.where=after"], "task: after_step changed self._teacher, which no checkpoint holds"),
        ("Drawing", [], "task: the loss depends on self._rng, which the forward changes"),
        ("Drawing", ["micro_batch_size=8"], "task: the loss depends on self._rng, which the forward changes"),
        ("Averaging", ["with.what=early", "checkpoint.best=loss"], "task: the evaluation made the buffer late; make it"),
        ("Averaging", ["with.what=evaluation", "evaluate.every=3"], "task: the evaluation changed mean of the model"),
        ("Weighing", ["evaluate.every=2"], "task: the loss depends on self._w, which the forward changes"),
        ("Averaging", ["with.what=early"], "task: the evaluation made the buffer late; make it"),
        ("Annealed", [], "task: the loss depends on self.beta, which the forward changes"),
        ("ChangingTheTask", [], "task: after_step changed self.scale, which no checkpoint holds"),
        ("Layer", ["with.kind=sync"], "task: 0 is a SyncBatchNorm, whose statistics depend on the number of processes"),
        ("Layer", ["with.kind=sparse"], "task: 1 has sparse gradients, which have no place in the ordered sum"),
        ("Layer", ["with.kind=max_norm"], "task: 1 has a max_norm, with which the forward changes the weights"),
        ("Layer", ["with.kind=lazy"], "task: the parameter weight has no shape yet; write the layer with its sizes"),
        ("Optimizers", ["with.kind=scheduled"], "task: a torch learning-rate scheduler hangs on the optimizer"),
        ("Optimizers", ["with.kind=two"], "task: the optimizer holds others in its both, whose state no checkpoint would hold"),
        ("Optimizers", ["with.kind=foreign"], "task: the optimizer has a parameter of shape (2,) that the model lacks"),
        ("Optimizers", ["with.kind=closure"], "optimizer: LBFGS calls the loss again in its step (a closure)"),
        ("Optimizers", ["with.kind=none"], "task: optimizer() returned NoneType; return a torch.optim.Optimizer"),
        ("Optimizers", ["with.kind=keeps"], "task: the optimizer's state.0.name is a object, which a checkpoint cannot hold"),
        ("Base", ["optimizer={name: lbfgs, lr: 1.0}"], "optimizer: LBFGS calls the loss again in its step (a closure)"),
        ("Base", ["optimizer={name: sparseadam, lr: 1.0}"], "optimizer: SparseAdam steps sparse gradients alone"),
        ("Unscored", ["checkpoint.best=accuracy"], "task: metrics returned a tensor of shape (2, 1) as a sum of 'accuracy'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2])
def test_what_cannot_be_kept_is_one_line_at_every_world_size(
    cases: Cases, task: str, words: list[str], line: str, size: int
) -> None:
    if "micro_batch_size=8" in words and size > 1:
        size = 1
    found = cases.start(task, *words, size=size)
    assert set(found.codes) == {2}, found.err + found.out
    assert found.err.startswith(f"samestep: {line}")
    assert len(found.err.splitlines()) == 1
    assert not found.folder.exists()


@pytest.mark.parametrize(
    ("task", "words", "line"),
    [
        ("Optimizers", ["with.kind=counts"], "task: the optimizer's step changes its attribute k, which no checkpoint holds"),
        ("LateChange", ["with.what=weight"], "task: the forward changed the parameter 0.weight"),
        ("LateChange", ["with.what=bias"], "task: the forward changed requires_grad of 0.bias; do that in after_step"),
        ("LateThreshold", [], "task: the loss depends on self._calls, which the forward changes"),
        ("Masked", [], "step 2: none of its rows counts: the weights of rows "),
    ],
)
def test_what_shows_only_later_is_named_and_costs_no_finished_step(
    cases: Cases, task: str, words: list[str], line: str
) -> None:
    found = cases.start(task, *words, COUNTED, steps=12)
    assert set(found.codes) == {1}
    assert line in found.err
    assert len(found.err.splitlines()) == 1


# What the line says of a task that remembers, by where it does.
LOSS, GRADIENT = "and its loss came out otherwise", "and a gradient came out otherwise"
ROWS, AFTERWARDS = "and its rows came out otherwise", "task: after_step left another centre after another micro-batch"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("iterator", LOSS),
        ("module", LOSS),
        ("class", LOSS),
        ("closure", LOSS),
        ("hook", LOSS),
        ("environment", LOSS),
        ("numpy", LOSS),
        ("file", LOSS),
        ("thread", LOSS),
        ("function", GRADIENT),
        ("rows counted", ROWS),
        ("after_step", AFTERWARDS),
    ],
)
def test_what_remembers_is_refused_wherever_it_does(cases: Cases, place: str, line: str, size: int) -> None:
    found = cases.start("Hidden", f"with.place={place}", size=size)
    assert set(found.codes) == {2}, found.err + found.out
    assert line in found.err
    assert len(found.err.splitlines()) == 1
    assert not found.folder.exists()


def test_a_gradient_in_an_evaluation_is_told_what_to_write(cases: Cases) -> None:
    found = cases.start("Pinn")
    assert found.codes == [2]
    assert "task: a gradient is taken in it, and an evaluation computes none, at " in found.err
    assert "write with torch.enable_grad():" in found.err


def test_a_cache_that_stays_as_its_process_filled_it_shows_between_processes(cases: Cases) -> None:
    found = cases.start("Hidden", "with.place=cache", size=2)
    assert set(found.codes) != {0}, found.err + found.out
    assert "the audit found another loss of the same micro-batch" in found.err


def test_a_task_that_remembers_nothing_passes_every_look(cases: Cases) -> None:
    words = ["with.place=nowhere", "audit={every: 1}"]
    assert cases.start("Hidden", *words, size=2).weights == cases.start("Hidden", *words, "audit=false", size=1).weights


def test_a_loss_that_asks_for_the_step_is_the_same_at_every_world_size_and_after_a_resume(cases: Cases) -> None:
    whole, part = stopped_and_resumed(cases, "AnnealedByTheStep", "evaluate.every=2", sizes=(2, 3))
    assert part.rows == whole.rows
    assert part.weights == whole.weights


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("weight", "task: the forward changed the parameter weight"),
        ("frozen", "task: the forward changed requires_grad of bias; do that in after_step"),
        ("buffer", "task: the forward made the buffer late; make it in model()"),
        ("empty", "task: the forward made the buffer empty; make it in model()"),
        ("module", "task: the forward made the parameter later.bias; make it in model()"),
        ("removed", "task: the forward removed mean of the model; do that in model()"),
        ("after", "task: after_step made the buffer late; make it in model()"),
        ("evaluation weight", "task: the evaluation changed weight of the model"),
        ("evaluation mean", "task: the evaluation changed mean of the model"),
        ("evaluation object", "task: the evaluation changed mean of the model"),
        ("evaluation buffer", "task: the evaluation made the buffer late; make it in model()"),
        ("evaluation empty", "task: the evaluation made the buffer empty; make it in model()"),
        ("evaluation removed", "task: the evaluation changed mean of the model"),
        ("evaluation error", "RuntimeError: no"),
    ],
)
def test_once_a_late_mistake_is_mended_the_run_goes_on_as_if_it_had_never_been(
    cases: Cases, what: str, line: str, size: int
) -> None:
    words = [f"with.what={what}", "evaluate.every=3", COUNTED]
    broken = cases.start("Spoiling", *words, run="part", size=size)
    assert 1 in broken.codes
    assert 0 not in broken.codes
    assert line in broken.err
    mended = cases.start("Spoiling", *words, run="part", size=3 - size, env={"CASE_MENDED": "1"})
    whole = cases.start("Spoiling", *words, run="whole", env={"CASE_MENDED": "1"})
    assert mended.weights == whole.weights
    assert mended.rows == whole.rows


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("rows", 'data: "train" on rank 0 has 64 rows and on rank 1 has 56'),
        ("model", "task: model() returned NoneType; return a torch.nn.Module"),
        ("weights", "task: model() made another 0.weight on rank 1 than on rank 0"),
        ("mistake", "task: loss returned a tensor of shape (); write return loss_sum, weight"),
    ],
)
def test_what_only_one_rank_does_is_refused_on_all(cases: Cases, what: str, line: str) -> None:
    found = cases.start("OnRankOne", f"with.what={what}", size=2)
    assert set(found.codes) == {2}, found.err + found.out
    assert found.err.startswith(f"samestep: {line}")
    assert len(found.err.splitlines()) == 1
    assert not found.folder.exists()


def test_what_one_ranks_evaluation_left_changed_is_told_before_another_goes_on(cases: Cases) -> None:
    found = cases.start("EvaluatedOnRankOne", "evaluate.every=1", size=2)
    assert set(found.codes) == {2}, found.err + found.out
    assert found.err == "samestep: task: the evaluation made the buffer late; make it in model()\n"


def test_a_run_goes_on_with_the_data_that_it_began_with(cases: Cases) -> None:
    cases.start("Resized", run="r", env={"CASE_END": "SIGTERM 10"})
    found = cases.start("Resized", run="r", env={"CASE_ROWS": "24"})
    assert found.codes == [2]
    assert found.err.startswith('samestep: data: "train" had 64 rows and has 24')
    assert (found.folder / "checkpoints").exists()
    assert cases.start("Resized", run="r").weights == cases.start("Resized", run="whole").weights


# Of seven micro-batches a step, dealt to three ranks in rounds: the last has two that count for nothing, as has an epoch's end.
SHARDED = ["global_batch_size=14", "clip=0.1", "checkpoint.every=2", "track={every: 1, wandb: off, fingerprint: parameters}"]


@pytest.mark.parametrize(
    "words", [["shard=true"], ["recompute=true"], ["shard=true", "recompute=true"]], ids=["sharded", "recomputed", "both"]
)
def test_a_sharded_run_has_an_unsharded_ones_bits(cases: Cases, words: list[str]) -> None:
    whole = cases.start("Repeating", *SHARDED)
    found = cases.start("Repeating", *SHARDED, *words, size=3)
    assert found.weights == whole.weights
    assert found.rows == whole.rows


def test_a_killed_sharded_run_goes_on_at_another_size_as_if_nothing_had_been(cases: Cases) -> None:
    whole = cases.start("Repeating", *SHARDED, run="whole")
    assert set(cases.start("Repeating", *SHARDED, "shard=true", size=3, run="part", env={"CASE_END": "SIGKILL 8"}).codes) != {0}
    assert set(cases.start("Repeating", *SHARDED, run="part", env={"CASE_END": "SIGTERM 10"}).codes) == {75}
    found = cases.start("Repeating", *SHARDED, "shard=true", "recompute=true", size=2, run="part")
    assert found.weights == whole.weights
    assert found.rows == whole.rows


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("hook", "shard: outward.weight has a hook on its gradient"),
        ("kept", "shard: the forward computes with parameters that it keeps in a list"),
        ("twice", "shard: _Noisy runs twice in one micro-batch"),
        ("skips", "shard: the forward went through other blocks on one rank than on another"),
        ("measured", "shard: the loss reaches past model(…)"),
        ("past", "shard: the loss reaches past model(…)"),
    ],
    ids=["hook", "kept", "twice", "skips", "measured", "past"],
)
def test_what_reaches_past_a_sharded_model_is_refused_in_a_line(cases: Cases, what: str, line: str) -> None:
    found = cases.start("Repeating", f"with.what={what}", "shard=true", size=2)
    assert set(found.codes) == {2}, found.err + found.out
    assert found.err.startswith(f"samestep: {line}")
    assert len({*found.err.splitlines()}) == 1
    assert not found.folder.exists()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("by", "line"),
    [
        ("torch", "task: the loss talks to other ranks (allgather, at "),
        ("accelerate", "task: the loss talks to other ranks ("),
        ("objects", "task: the loss talks to other ranks (allgather, at "),
        ("barrier", "task: the loss talks to other ranks (barrier"),
        ("number", "task: the loss depends on its rank, or on the number of ranks; "),
    ],
)
def test_a_loss_that_is_not_computed_alone_is_refused_before_the_first_step(
    cases: Cases, by: str, line: str, size: int
) -> None:
    found = cases.start("Gathering", f"with.by={by}", size=size)
    assert set(found.codes) == {2}, found.err + found.out
    assert found.err.startswith(f"samestep: {line}")
    assert len(found.err.splitlines()) == 1
    assert not found.folder.exists()
