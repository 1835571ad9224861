"""wandb, TensorBoard and trackers of one's own: each step once through a kill, and nothing of theirs ends or slows a run."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
from pathlib import Path

import pytest
import wandb
from wandb_file import offline_runs, read_wandb

from conftest import Workplace
from samestep.commands.diff import diff
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run.metric_rows import Row, as_line
from samestep.tracking import RunInfo, find_tracker
from samestep.tracking.background import Background
from samestep.tracking.wandb_run import WandbRun

MINE = """
import json, os, pathlib, signal, time

import datasets, numpy as np, torch
from samestep import Task


class Mine(Task):
    _calls: int = 0

    def data(self, split):
        return datasets.Dataset.from_dict({"x": np.random.default_rng(0).standard_normal((64, 3), dtype=np.float32)})

    def model(self):
        return torch.nn.Linear(3, 1)

    def loss(self, model, batch):
        self._calls += model.training
        if "DIES" in os.environ and self._calls == 19:
            run = pathlib.Path("runs/mine")
            while not all((any(run.glob(name)) for name in ("kept.jsonl", "tensorboard/*", "wandb/offline-run-*/run-*.wandb"))):
                time.sleep(0.05)
            time.sleep(1)  # every tracker has had its rows by now
            os.kill(os.getpid(), signal.SIGKILL)
        return model(batch["x"]).square().sum(), len(batch["x"])

    def show(self, model):
        return "a line\\nand another"


class Kept:
    def __init__(self, run):
        self.path = run.path / "kept.jsonl"
        self.put({"name": run.name, "first_step": run.first_step, "seed": run.config["seed"]})

    def put(self, values):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\\n")

    def row(self, values):
        self.put(values)

    def close(self):
        return "kept it"
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 8
micro_batch_size: 8
steps: 30
optimizer: {name: sgd, lr: 1e-2}
evaluate: {every: 5}
checkpoint: {every: 10, background: false, best: loss}
track: {every: 1, notes: words, also: [tensorboard, "mine.py:Kept"]}
"""


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_killed_run_goes_on_in_each_tracker_with_every_step_once(workplace: Workplace) -> None:
    workplace.write("mine.py", MINE)
    workplace.write("mine.yaml", CONFIG)
    workplace.env |= {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "DIES": "yes"}
    killed = workplace.train("mine.yaml", "--run", "mine", "audit=false")  # which dies in a certain call
    assert killed.code == -9
    del workplace.env["DIES"]
    done = workplace.train("mine.yaml", "--run", "mine")
    assert done.code == 0, done.err
    assert done.err == ""
    folder, rows = workplace.path / "runs/mine", workplace.metrics("mine")
    first, last = offline_runs(folder)
    shown = ["a line", "and another", "tensorboard --logdir runs/mine/tensorboard", "kept it"]
    said = [line for line in done.out.splitlines() if not line.startswith("best ")]
    assert said[-6:] == [*shown, f"wandb sync runs/mine/wandb/{last.name}", f"weights {done.weights}"]

    found = read_wandb(last)
    run_id = workplace.state("mine")["wandb"]
    assert found.run.run_id == run_id
    assert first.name.endswith(run_id)
    assert (found.run.run_group, found.run.job_type, found.run.notes) == ("sweep-77", "train", "words")
    assert found.config["optimizer"] == {"name": "sgd", "lr": 1e-2}
    whole: dict[int, Row] = {}
    for row in rows:
        whole.setdefault(row["step"], {}).update(row)
    assert [row["_step"] for row in found.history] == list(range(1, 31))
    assert [{key: row[key] for key in whole[row["_step"]] if key != "step"} for row in found.history] == [
        {key: value for key, value in row.items() if key != "step"} for row in whole.values()
    ]
    best = min((row["eval_loss"], row["step"]) for row in rows if "eval_loss" in row)
    assert (found.summary["best_eval_loss"], found.summary["best_eval_loss_step"]) == best
    assert (found.summary["status"], found.summary["weights"], found.exit_code) == ("done", done.weights, 0)
    assert "sources/mine.py" in found.files
    assert (last / "files/sources/mine.py").read_text() == MINE
    (table,) = (last / "files/media/table").glob("shown_*.table.json")
    assert json.loads(table.read_text())["data"] == [[30, "a line\nand another"]]

    events = scalars(folder / "tensorboard")
    assert [step for step, _ in events["loss"]] == list(range(1, 31))
    assert [step for step, _ in events["eval_loss"]] == list(range(5, 31, 5))
    assert [value for _, value in events["loss"]] == pytest.approx([row["loss"] for row in rows if "loss" in row])

    kept = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    begins = [place for place, row in enumerate(kept) if "first_step" in row]
    assert [kept[place] for place in begins] == [{"name": "mine", "first_step": step, "seed": 0} for step in (0, 15)]
    assert kept[begins[1] + 1 : -1] == [row for row in rows if row["step"] > 15]
    assert kept[begins[1] - 1]["step"] > 15
    assert kept[-1] == {"step": 30, "shown": "a line\nand another"}


def info(path: Path, first_step: int = 0, rows: str = "", group: str | None = None) -> RunInfo:
    (path / "case.yaml").write_text(CONFIG)
    (path / "metrics.jsonl").write_text(rows)
    (path / "state.json").write_text(json.dumps({"status": "stopped", "weights": None}))
    config = load_config(path / "case.yaml")[0].resolved()
    return RunInfo("case", path, config, "abcd1234", group, first_step, len(rows.encode()))


WORDS = {
    "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_NAME": "named", "WANDB_RUN_GROUP": "grouped",
    "WANDB_JOB_TYPE": "tried", "WANDB_TAGS": "x,y", "WANDB_NOTES": "noted",
}  # fmt: skip


def test_what_the_environment_says_in_wandbs_words_wins_over_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in WORDS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    tracker = WandbRun(info(tmp_path, group="sweep-1"), "offline")
    tracker.row({"step": 1, "loss": 1.0})
    words = tracker.close()
    wandb.teardown()  # as at a process's end: then the file is whole
    (folder,) = offline_runs(tmp_path / "elsewhere")
    assert words == f"wandb sync {folder}"
    run = read_wandb(folder).run
    found = (run.project, run.entity, run.display_name, run.run_group, run.job_type, ",".join(run.tags), run.notes)
    assert found == tuple(WORDS.values())
    assert read_wandb(folder).summary["status"] == "stopped"


class StubRun:
    """Takes the place of wandb's run where a server would be needed: it has the rows of the steps before `step`."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.dir, self.logged = step, str(path / "files"), []  # type: ignore[var-annotated]
        self.summary: Row = {}
        self.settings = types.SimpleNamespace(mode="online")

    def log(self, row: Row, step: int) -> None:
        self.logged.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_a_server_gets_what_it_lacks_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stub of wandb, whose server has got rows up to step 4, and of step 2 no evaluation."""
    stub = StubRun(5, tmp_path)
    stand_in = types.SimpleNamespace(
        init=lambda **given: stub, Settings=lambda **given: None, setup=print, Table=None, Error=Exception
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    kept = "".join(as_line({"step": step, "loss": float(step)}) for step in range(1, 7))
    tracker = WandbRun(info(tmp_path, first_step=6, rows=kept), "online")
    tracker.row({"step": 6, "eval_loss": float("nan")})
    tracker.row({"step": 7, "loss": 7.0})
    assert [step for step, _ in stub.logged] == [5, 6]
    assert tracker.close() is None
    assert [(step, row["loss"]) for step, row in stub.logged] == [(5, 5.0), (6, 6.0), (7, 7.0)]
    assert stub.logged[1][1].keys() == {"loss", "eval_loss"}


def test_trackio_gets_numbers_by_step_tried_with_a_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Row = {}
    logged: list[tuple[Row, int]] = []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((row, step)), finish=lambda: logged.append(({}, 0)))
    stub = types.ModuleType("trackio")
    stub.init = lambda **given: asked.update(given) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", stub)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    tracker = find_tracker("trackio")(info(tmp_path, group="sweep-1"))
    tracker.row({"step": 3, "time": 1.0, "loss": 2.0, "shown": "text"})
    assert tracker.close() is None
    assert (asked["project"], asked["name"], asked["group"], asked["resume"]) == ("samestep", "case", "sweep-1", "allow")
    assert logged == [({"loss": 2.0}, 3), ({}, 0)]


@pytest.mark.parametrize(
    ("also", "words"),
    [
        ("[wandb]", "track.also: found 'wandb'; write tensorboard, trackio, module:Class or path/to/file.py:Class"),
        ("[trackio]", "track.also: trackio is not installed here; write pip install trackio, or leave it out"),
        ('["none.py:Mine"]', "track.also: found no file none.py in {here} or beside the config; write path/to/file.py:Class"),
        ('["json:Nothing"]', "track.also: found 'json:Nothing'; write a class that has the methods row and close"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: str, words: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "case.yaml").write_text(CONFIG)
    with pytest.raises(UsageError) as raised:
        find_tracker(load_config(tmp_path / "case.yaml", [f"track.also={also}"])[0].track.also[0])
    assert raised.value.lines == (words.replace("{here}", os.getcwd()),)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit("told\nyou")])
def test_a_tracker_that_fails_is_one_line_and_takes_nothing_more(error: BaseException) -> None:
    class Failing:
        rows = 0

        def row(self, values: Row) -> None:
            self.rows += 1
            if self.rows == 2:
                raise error

        def close(self) -> None:
            raise AssertionError

    said: list[str] = []
    tracker = Failing()
    background = Background("mine", lambda: tracker, said.append)
    for step in range(1, 5):
        background.row({"step": step})
    background.close(20.0)
    words = "[Errno 28] No space left on device" if isinstance(error, OSError) else "told you"
    assert said == [f"mine stopped ({type(error).__name__}: {words}); the run goes on, and metrics.jsonl has every row"]
    assert tracker.rows == 2
    background.row({"step": 5})
    assert background._rows.qsize() <= 3


def test_a_tracker_with_a_pause_gets_its_rows_in_lots_and_the_last_at_once() -> None:
    got: list[int] = []
    begins, pauses = threading.Event(), threading.Event()

    class Pause(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.set()
            return super().wait(timeout)

    class Slow:
        def __init__(self) -> None:
            begins.wait(20)

        def row(self, values: Row) -> None:
            got.append(values["step"])

        def close(self) -> None: ...

    said: list[str] = []
    background = Background("mine", Slow, said.append, pause_s=100.0)
    background._is_ending = Pause()
    background.row({"step": 1})
    background.row({"step": 2})
    begins.set()
    assert pauses.wait(20)
    background.row({"step": 3})
    background.row({"step": 4})
    assert got == [1, 2]
    background.close(20.0)
    assert got == [1, 2, 3, 4]
    assert said == []


def test_a_tracker_that_is_not_done_in_time_says_nothing_after_the_run() -> None:
    goes_on, has_ended = threading.Event(), threading.Event()

    class Late:
        def row(self, values: Row) -> None: ...

        def close(self) -> None:
            goes_on.wait(20)
            has_ended.set()
            raise OSError("no network")

    said: list[str] = []
    background = Background("mine", Late, said.append)
    background.close(0.1)
    goes_on.set()
    assert has_ended.wait(20)
    background._thread.join(20)
    assert said == ["mine did not finish within 0 s; metrics.jsonl has every row"]


def test_two_runs_that_differ_by_the_clock_alone_are_the_same_to_diff(tmp_path: Path) -> None:
    def recorded(name: str, loss: float, measured: float) -> str:
        folder = tmp_path / name
        folder.mkdir()
        columns = ("time", "step_s", "data_wait_s", "bytes_per_s", "peak_memory_bytes", "mfu")
        info(folder, rows=as_line({"step": 1, "loss": loss, **dict.fromkeys(columns, measured)}))
        (folder / "case.yaml").rename(folder / "config.yaml")
        return str(folder)

    first, later, other = recorded("first", 1.0, 2.0), recorded("later", 1.0, 3.0), recorded("other", 1.5, 2.0)
    assert diff(first, later) == (True, "the same at all 1 rows that both tracked, to step 1")
    assert diff(first, other) == (False, "the runs part at step 1 (the first that both tracked)\n  loss: 1.0 | 1.5")


@pytest.mark.parametrize(
    ("forks", "mode", "asked", "sent"),
    [
        (True, "online", [{"fork_from": "abc?_step=4"}], [5]),
        (False, "online", [{"fork_from": "abc?_step=4"}, {"resume": "allow"}], [3, 4, 5]),
        (True, "offline", [{"resume": "allow"}], [3, 4, 5]),
    ],
)
def test_a_branch_is_forked_online_and_else_has_its_parents_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: bool, mode: str, asked: list[dict[str, str]], sent: list[int]
) -> None:
    begun: list[dict[str, str]] = []
    rows: list[int] = []

    def init(**words: object) -> object:
        begun.append({key: str(words[key]) for key in ("fork_from", "resume") if key in words})
        if "fork_from" in words and not forks:
            raise wandb.errors.CommError("no such run")
        return types.SimpleNamespace(step=0, log=lambda values, step: rows.append(step), dir=str(tmp_path))

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    (tmp_path / "mine.yaml").write_text(
        "task: regression\nglobal_batch_size: 2\nmicro_batch_size: 2\nsteps: 9\noptimizer: {name: sgd, lr: 1}\n"
    )
    (tmp_path / "metrics.jsonl").write_text("".join(as_line({"step": step, "loss": 1.0}) for step in (3, 4)))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    config = load_config(tmp_path / "mine.yaml")[0].resolved()
    run = WandbRun(RunInfo("b", tmp_path, config, "xyz", None, 4, size, fork=("abc", 4)), mode)
    run.row({"step": 5, "loss": 1.0})
    run.row({"step": 6, "loss": 1.0})
    assert begun == asked
    assert rows == sent
