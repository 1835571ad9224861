"""What a run records can be read back, and recording never ends a run."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_file import offline_runs, read_wandb

from conftest import ROOT, Workplace
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import timeless
from samestep.tracking import cut_back, wandb_mode


def test_an_offline_wandb_run_holds_config_history_and_summary(workplace: Workplace) -> None:
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "seed", "track.tags=[a]")
    assert done.code == 0, done.err
    folder = offline_runs(workplace.path / "runs/seed")[0]
    found = read_wandb(folder)
    assert found.run.run_id == workplace.state("seed")["wandb"]
    assert found.config["global_batch_size"] == 32
    assert found.config["optimizer"]["lr"] == 1e-3
    rows = workplace.metrics("seed")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [(row["_step"], row["loss"]) for row in found.history] == [(row["step"], row["loss"]) for row in rows]
    assert found.summary["loss"] == rows[-1]["loss"]
    assert done.out.splitlines()[-2:] == [f"wandb sync runs/seed/wandb/{folder.name}", f"weights {done.weights}"]


@pytest.fixture
def wandb_server(workplace: Workplace) -> Iterator[list[str]]:
    """What arrives at a server that the environment names, with a key for it."""
    requests: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.send_error(401)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        del workplace.env["WANDB_MODE"]
        workplace.env |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
        yield requests
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "value", "folders"),
    [("WANDB_MODE", "offline", 1), ("WANDB_MODE", "dryrun", 1), ("WANDB_MODE", "disabled", 0), ("WANDB_DISABLED", "true", 0)],
)
def test_what_the_environment_forbids_is_not_sent(
    workplace: Workplace, wandb_server: list[str], name: str, value: str, folders: int
) -> None:
    workplace.env[name] = value
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "seed", "epochs=1", "track.wandb=online")
    assert done.code == 0, done.err
    assert wandb_server == []
    assert len(list((workplace.path / "runs/seed").glob("wandb/offline-run-*"))) == folders
    assert (workplace.path / "runs/seed/wandb").exists() == bool(folders)


@pytest.mark.parametrize(
    ("asked", "mode", "disabled", "key", "meant"),
    [
        ("auto", "", "", "", "offline"),
        ("auto", "", "", "k", "online"),
        ("auto", "online", "", "", "online"),
        ("auto", "offline", "", "k", "offline"),
        ("auto", "", "false", "k", "online"),
        ("auto", "", "1", "k", "off"),
        ("online", "dryrun", "", "k", "offline"),
        ("online", "disabled", "", "k", "off"),
        ("offline", "online", "", "k", "offline"),
        ("offline", "disabled", "", "", "off"),
        ("off", "online", "", "k", "off"),
    ],
)
def test_the_stricter_of_config_and_environment_holds(
    monkeypatch: pytest.MonkeyPatch, asked: str, mode: str, disabled: str, key: str, meant: str
) -> None:
    monkeypatch.setenv("NETRC", os.devnull)
    for name, value in (("WANDB_MODE", mode), ("WANDB_DISABLED", disabled), ("WANDB_API_KEY", key)):
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == meant


def test_a_broken_wandb_is_one_line_and_the_run_goes_on(workplace: Workplace) -> None:
    (workplace.path / "wandb.py").write_text("raise RuntimeError('no network')\n")
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "seed")
    assert done.code == 0
    assert done.out.count("wandb stopped (RuntimeError: no network); the run goes on") == 1
    assert len(workplace.metrics("seed")) == 40


def test_a_wrong_key_is_one_line_and_nothing_follows_the_weights(workplace: Workplace, wandb_server: list[str]) -> None:
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "seed", "epochs=1", "track.wandb=online")
    assert done.code == 0
    assert done.out.count("wandb stopped (CommError: ") == 1
    assert "; the run goes on, and metrics.jsonl has every row\nweights " in done.out
    assert done.err == ""
    assert wandb_server


def test_rows_of_every_tracked_step(workplace: Workplace) -> None:
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "seed", "track.every=7", "track.wandb=off")
    assert done.code == 0
    rows = workplace.metrics("seed")
    assert [row["step"] for row in rows] == [7, 14, 21, 28, 35, 40]
    measured = {"time", "step_s", "data_wait_s", "samples_per_s", "peak_memory_bytes"}
    assert set(rows[0]) == {"step", "epoch", "loss", "lr", "grad_norm", *measured}
    assert timeless(rows[0]).keys() == rows[0].keys() - measured
    assert [row["epoch"] for row in rows] == [2, 4, 6, 7, 9, 10]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo'])
def test_rows_after_the_checkpoint_are_cut(tmp_path: Path, torn: str) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(f'{{"step": {step}, "loss": 1}}\n' for step in (1, 2, 3)) + torn)
    cut_back(folder, 2, [], evaluates_again=False)
    assert folder.metrics.read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n'


def test_a_row_whose_end_was_not_written_stays_a_line_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (3, 4):  # the last that stays, and one before it
        folder.metrics.write_text('{"step": 1, "loss": 1}\n{"step": 3, "loss": 3}')
        cut_back(folder, step, [], evaluates_again=False)
        assert folder.metrics.read_text() == '{"step": 1, "loss": 1}\n{"step": 3, "loss": 3}\n'


def test_an_evaluation_that_comes_again_stands_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = [{"step": 2, "eval_loss": 9.0}, {"step": 4, "loss": 4.0}, {"step": 4, "eval_loss": 8.0}]
    for again, left in ((False, rows), (True, rows[:2])):
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cut_back(folder, 4, rows, evaluates_again=again)
        assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == left


def test_a_row_that_its_writer_died_before_comes_from_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n')
    latest = [{"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 9.0}, {"step": 3, "loss": 3.0}]
    cut_back(folder, 3, latest, evaluates_again=False)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, *latest]
