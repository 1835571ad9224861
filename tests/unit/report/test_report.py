"""A report tells what a run's folder tells, to anybody, anywhere, and nothing more."""

from __future__ import annotations

import http.server
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Workplace
from samestep.commands.report import report
from samestep.report import read
from samestep.report.record import Curve
from samestep.report.sections import goodput, spent
from samestep.report.thinning import thinned
from samestep.report.timeline import mean_steps_per_s, starts_of, steps_per_s, time_split
from samestep.run.folder import RunFolder

NAME = '<u>run&" onclick="alert(4)'
BEGUN = 1_700_000_000.0
CONFIG = """# mine.yaml
task: mine.py:Mine
# mine.yaml, command line
optimizer: {name: adamw, lr: 0.002}
# default
seed: 0
"""


def row(step: int, at: float, **values: Any) -> dict[str, Any]:
    """A row `at` seconds after the first start began; of training unless it says otherwise."""
    if not any(key.startswith("eval_") for key in values):
        values = {"loss": 10 / step, "lr": 0.002, "grad_norm": 1.0, **values}
    return {"step": step, "epoch": 1, "time": BEGUN + at, **values}


def start(at: float, resumed_from: int, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """A start that was launched 4 s before it began; `before` is what it found of the one before it."""
    facts = {"host": "node1", "pid": 1, "job": None, "world_size": 2, "resumed_from": resumed_from}
    return {**facts, "launched": BEGUN + at - 4, "time": BEGUN + at, "before": before}


def ended(status: str, wrote: float, step: int, at: float) -> dict[str, Any]:
    return {"status": status, "time": BEGUN + wrote, "row": {"step": step, "time": BEGUN + at}}


def make(runs: Path, name: str, rows: list[dict[str, Any]], starts: list[dict[str, Any]], **state: Any) -> RunFolder:
    folder = RunFolder(runs / name)
    folder.create()
    folder.starts.mkdir()
    folder.config.write_text(state.pop("config", CONFIG))
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, facts in enumerate(starts):
        (folder.starts / f"{number + 1:04d}.json").write_text(json.dumps(facts))
    known = {"status": "done", "reason": "", "step": rows[-1]["step"] if rows else 0, "num_steps": 100, "world_size": 2}
    known |= {"restarts": len(starts) - 1, "weights": "ab" * 32, "host": "node1", "time": BEGUN + 1000}
    folder.state.write_text(
        json.dumps(known | {"kind": {"torch": "2.9", "device": "cpu"}, "code": {"samestep": "c0de"}} | state)
    )
    return folder


def tormented(runs: Path, name: str = "tormented", **state: Any) -> RunFolder:
    """Four starts over 100 steps of a second each, tracked every 10; an evaluation of 3 s after step 50.

    Stopped at step 25, killed at step 70 with a checkpoint of step 40, failed at step 80 and saved, done.
    """
    rows = [row(10, 10), row(20, 20)]
    rows += [row(30, 105), row(40, 115)]  # from 25, begun at 100
    rows += [row(50, 210), row(50, 213, eval_loss=0.5), row(60, 223), row(70, 233), row(80, 243)]  # from 40, begun at 200
    rows += [row(90, 310), row(100, 320), row(100, 322, eval_loss=0.4)]  # from 80, begun at 300
    starts = [
        start(0, 0),
        start(100, 25, ended("stopped", 26, 20, 20)),
        start(200, 40, ended("running", 116, 70, 145)),
        start(300, 80, ended("failed", 250, 80, 243)),
    ]
    return make(runs, name, rows, starts, **{"time": BEGUN + 325, **state})


class Page(HTMLParser):
    """What a browser would see: the text outside scripts, and the JSON inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self._data = ""
        self._inside = self._id = ""
        self.feed(text)
        self.data = json.loads(self._data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside, self._id = tag, dict(attrs).get("id") or ""
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._id = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._id == "data":
            self._data += data
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    def plot(self, title: str) -> list[dict[str, Any]]:
        (curves,) = (plot["curves"] for plot in self.data["plots"] if plot["title"] == title)
        return list(curves)


def written(runs: Path, *names: str) -> Page:
    place = report(names, str(runs), runs / "page.html")
    return Page(place.read_text())


def test_a_page_has_the_runs_curves_config_machine_and_weights(tmp_path: Path) -> None:
    tormented(tmp_path)
    place = report(("tormented",), str(tmp_path), None)
    assert place == tmp_path / "tormented/report.html"
    page = Page(place.read_text())
    assert {plot["title"] for plot in page.data["plots"]} == {"Loss", "Learning rate", "Gradient norm", "Throughput"}
    loss, eval_loss = page.plot("Loss")
    assert loss["x"] == list(range(10, 101, 10))
    assert loss["y"] == [float(f"{10 / step:.6g}") for step in range(10, 101, 10)]
    assert (eval_loss["name"], eval_loss["x"], eval_loss["y"]) == ("eval_loss", [50, 100], [0.5, 0.4])
    assert page.data["restarts"] == [[25, 40, 80]]
    for words in ("optimizer.lr", "0.002", "mine.yaml, command line", "2.9", "c0de", "ab" * 32, "killed", "node1"):
        assert words in page.words


def test_where_the_time_went_adds_up(tmp_path: Path) -> None:
    record = read(tormented(tmp_path), "done")
    starts = starts_of(record)
    assert [(one.resumed_from, one.furthest, one.kept, one.end) for one in starts] == [
        (0, 20, 25, "stopped"), (25, 70, 15, "running"), (40, 80, 40, "failed"), (80, 100, 20, "done"),
    ]  # fmt: skip
    found = time_split(record, starts)
    assert found == pytest.approx(
        {
            "training": 25 + 15 + 40 + 20,
            "evaluation": 3 + 2,
            "redone": 30,  # steps 41 to 70
            "starting": 4 * 4,
            "ending": 1 + 0 + 7 + 3,
            "down": (96 - 26) + (196 - 145) + (296 - 250),
        }
    )
    assert sum(found.values()) == pytest.approx(325 + 4)
    assert goodput(record) == pytest.approx(100 / 329)


def test_time_that_the_folder_does_not_tell_is_left_out(tmp_path: Path) -> None:
    folder = tormented(tmp_path)
    for path in folder.starts.glob("*.json"):  # as an older version wrote them
        facts = json.loads(path.read_text())
        del facts["before"], facts["launched"]
        path.write_text(json.dumps(facts))
    record = read(folder, "done")
    assert spent(record) == {}
    assert math.isnan(goodput(record))
    assert "Where the time went" not in written(tmp_path, "tormented").words


def test_a_start_without_a_row_and_one_whose_steps_were_all_taken_again(tmp_path: Path) -> None:
    rows = [row(10, 310)]
    starts = [start(0, 0), start(100, 0, ended("running", 1, 20, 20)), start(300, 0, ended("failed", 105, 20, 20))]
    record = read(make(tmp_path, "run", rows, starts, time=BEGUN + 311), "done")
    found = time_split(record, starts_of(record))
    assert found == pytest.approx(
        {"training": 10, "evaluation": 0, "redone": 20, "starting": 12, "ending": 5 + 1, "down": 96 - 20 + 296 - 105}
    )


def test_throughput_counts_neither_gaps_between_starts_nor_evaluation(tmp_path: Path) -> None:
    rows = [row(10, 10), row(20, 15), row(30, 110), row(40, 112), row(40, 117, eval_loss=1.0), row(50, 119)]
    rows += [row(55, 120, eval_loss=1.0), row(60, 130)]  # nobody knows what the second evaluation took
    record = read(make(tmp_path, "run", rows, [start(0, 0), start(100, 20, ended("running", 15, 20, 15))]), "done")
    curve = steps_per_s(record)
    assert curve.steps.tolist() == [20, 40, 50]
    assert curve.values.tolist() == [2.0, 5.0, 5.0]
    assert mean_steps_per_s(record) == pytest.approx(30 / 9)


def test_waiting_for_data_is_shown_where_the_rows_have_it(tmp_path: Path) -> None:
    make(tmp_path, "run", [row(10, 10, data_wait_s=2.5), row(20, 20, data_wait_s=1.5, tokens_per_s=640.0)], [start(0, 0)])
    found = spent(read(RunFolder(tmp_path / "run"), "done"))
    assert (found["waiting for data"], found["training"]) == pytest.approx((4, 16))
    page = written(tmp_path, "run")
    assert page.plot("Waiting for data")[0]["y"] == [2.5, 1.5]
    assert page.plot("Throughput")[0]["name"] == "tokens_per_s"


def test_an_axis_shows_what_a_curve_does(tmp_path: Path) -> None:
    """Constant values, memory, and a fall after which a linear axis would show a line along its floor."""
    rows = [row(step, step, loss=1000 / step**2, waits_s=0.0, peak_memory_bytes=2**30) for step in range(1, 101)]
    make(tmp_path, "run", rows, [start(0, 0)])
    plots = {plot["title"]: plot for plot in written(tmp_path, "run").data["plots"]}
    assert (plots["Loss"]["log"], plots["Loss"]["bent"], plots["Loss"]["zero"]) == (True, True, False)
    assert (plots["Learning rate"]["log"], plots["Learning rate"]["bent"]) == (True, False)
    assert (plots["Peak memory"]["log"], plots["Peak memory"]["bent"], plots["Peak memory"]["zero"]) == (False, False, True)
    assert not plots["waits_s"]["log"]
    steady = [row(step, step, loss=3.0 - step / 100) for step in range(1, 101)]
    make(tmp_path, "steady", steady, [start(0, 0)])
    assert not written(tmp_path, "steady").data["plots"][0]["bent"]


def test_the_best_is_the_one_that_the_run_keeps_or_else_the_least_loss_in_evaluation(tmp_path: Path) -> None:
    rows = [row(10, 10)]
    rows += [row(step, 10, eval_loss=abs(step - 20) + 1.0, eval_accuracy=step / 50) for step in (10, 20, 30)]
    make(tmp_path, "own", rows, [start(0, 0)])
    make(tmp_path, "kept", rows, [start(0, 0)], best={"metric": "eval_accuracy", "value": 0.6, "step": 30})
    own, kept = (written(tmp_path, name) for name in ("own", "kept"))
    assert [curve["best"] for curve in own.plot("Loss")] == [None, [20, 1.0]]
    assert [curve["best"] for curve in own.plot("Evaluation: accuracy")] == [None]
    assert [curve["best"] for curve in kept.plot("Evaluation: accuracy")] == [[30, 0.6]]


def test_each_value_of_a_block_has_its_own_origin(tmp_path: Path) -> None:
    config = (
        "# default\nseed: 0\noptimizer:\n  # a.yaml\n  name: adam\n  # command line\n  lr: 0.1\n# b.yaml\ntrack: {every: 1}\n"
    )
    record = read(make(tmp_path, "run", [row(10, 10)], [start(0, 0)], config=config), "done")
    keys = ("seed", "optimizer.name", "optimizer.lr", "track.every")
    assert [record.origin(key) for key in keys] == ["default", "a.yaml", "command line", "b.yaml"]
    words = written(tmp_path, "run").words
    assert words[words.index("optimizer.lr") + 1 :][:2] == ["0.1", "command line"]


def test_what_users_write_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = """</script><script>alert(1)</script><img src=x onerror=alert(2)>" onclick="alert(3)' onload='"""
    config = f"# default\ntrack: {{notes: {json.dumps(evil)}}}\n"
    folder = make(tmp_path, NAME, [row(10, 10, **{evil: 1.0})], [start(0, 0)], config=config, reason=evil, host=evil)
    folder.shown.write_text(evil)
    make(tmp_path, "other", [row(10, 10)], [start(0, 0)])
    for names in ([NAME], [NAME, "other"]):
        page = written(tmp_path, *names)
        assert re.search(r'id="data">[^<]*</script>', (tmp_path / "page.html").read_text())
        assert not [name for name in page.attributes if name.startswith("on")]
        assert page.tags.count("script") == 4  # the theme, the data, uPlot, the page's own
        assert not {"img", "u"} & set(page.tags)
        assert page.words.count(evil) >= 3
        assert page.plot(evil)[0]["y"] == [1.0]
        assert page.data["names"][0] == NAME


def test_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    folder = make(tmp_path, "run", [row(10, 10, grad_norm=None), row(20, 20), row(20, 21, eval_loss=None)], [start(0, 0)])
    with folder.metrics.open("a") as file:
        file.write('{"step": 30, "time": 1, "loss": NaN, "grad_norm": -Infinity}\n{"step": 40, "lo')
    page = written(tmp_path, "run")
    assert page.plot("Gradient norm")[0]["y"] == [None, 1.0, None]
    assert [curve["y"] for curve in page.plot("Loss")] == [[1.0, 0.5, None], [None]]


@pytest.mark.parametrize("status", ["running", "stopped", "failed", "queued"])
def test_a_run_without_rows_has_a_page(tmp_path: Path, status: str) -> None:
    make(tmp_path, "run", [], [start(0, 0)], status=status, reason="the disk is full")
    make(tmp_path, "other", [row(1, 1)], [])
    page = written(tmp_path, "run")
    assert page.data["plots"] == []
    assert "the disk is full" in page.words
    assert len(written(tmp_path, "run", "other").plot("Loss")) == 1


def test_a_million_rows_are_half_a_megabyte_with_every_spike(tmp_path: Path) -> None:
    steps = np.arange(1, 1_000_001)
    loss, norm = 1e-5 / np.sqrt(steps), 1e-5 * np.random.default_rng(0).random(len(steps))  # long to write
    loss[[123_456, 765_432]], norm[500_000] = (99.0, -5.0), 1e9
    folder = make(tmp_path, "long", [], [start(0, 0)], step=len(steps))
    with folder.metrics.open("w") as file:
        file.writelines(
            f'{{"step": {step}, "epoch": 1, "time": {BEGUN + step}, "loss": {a}, "lr": {a}, "grad_norm": {b}}}\n'
            for step, a, b in zip(steps.tolist(), loss.tolist(), norm.tolist(), strict=True)
        )
    page = written(tmp_path, "long")
    assert (tmp_path / "page.html").stat().st_size < 500_000
    (curve,) = page.plot("Loss")
    assert {99.0, -5.0} <= set(curve["y"])
    assert len(curve["x"]) > 1000
    assert 1e9 in page.plot("Gradient norm")[0]["y"]


def test_thinning_keeps_the_ends_the_extremes_and_the_gaps() -> None:
    values = np.sin(np.arange(10_000) / 10)
    values[5000], values[7001] = np.nan, 50
    few = thinned(Curve(np.arange(10_000.0), values), 100)
    assert len(few.steps) <= 103
    assert (few.steps[0], few.steps[-1]) == (0, 9999)
    assert few.values[few.steps == 7001] == [50]
    assert np.isnan(few.values[few.steps == 5000]).tolist() == [True]
    whole = Curve(np.arange(50.0), values[:50])
    assert thinned(whole, 50) is whole


def sweep(runs: Path, count: int) -> list[str]:
    for number in range(count):
        config = CONFIG.replace("0.002", str(0.001 * (number + 1)))
        rows = [row(step, step, loss=10 / step + number) for step in range(10, 101, 10)] + [
            row(100, 101, eval_loss=9.0 - number)
        ]
        make(runs, f"sweep-{number}", rows, [start(0, 0)], config=config, time=BEGUN + 110)
    return [f"sweep-{number}" for number in range(count)]


def test_several_runs_lie_over_each_other_with_what_differs_in_a_table(tmp_path: Path) -> None:
    page = written(tmp_path, *sweep(tmp_path, 12))
    assert [curve["run"] for curve in page.plot("Loss")] == list(range(12))
    assert page.data["drawn"] == list(range(4, 12))  # the eight with the least eval_loss
    titles = page.words[page.words.index("run") : page.words.index("weights") + 1]
    assert titles == [
        "run",
        "state",
        "step",
        "optimizer.lr",
        "loss",
        "eval_loss",
        "steps/s",
        "time",
        "goodput",
        "restarts",
        "weights",
    ]
    for words in ("sweep-7", "0.008", "7.1", "2", "mine.py:Mine"):
        assert words in page.words


def test_a_sweep_of_hundreds_stays_small(tmp_path: Path) -> None:
    page = written(tmp_path, *sweep(tmp_path, 200))
    assert (tmp_path / "page.html").stat().st_size < 500_000
    assert all(len(curve["x"]) == 10 for curve in page.plot("Loss"))


def test_a_report_imports_no_torch(workplace: Workplace) -> None:
    tormented(workplace.path / "runs")
    code = "import sys; from samestep.cli import cli; cli.main(['report', 'tormented'], standalone_mode=False)"
    code += "; print('torch' in sys.modules)"
    done = workplace.command(sys.executable, "-c", code)
    assert done.out.splitlines() == ["runs/tormented/report.html", "False"], done.err


def test_what_cannot_be_written_or_found_is_one_line(workplace: Workplace) -> None:
    tormented(workplace.path / "runs")
    for words, line in (
        (("tormented", "--out", "no/where.html"), "samestep: no/where.html: could not be written (No such file or directory)"),
        (("lost",), "samestep: lost: found no such run"),
    ):
        done = workplace.samestep("report", *words)
        assert done.code == 2
        assert done.err.startswith(line)
        assert done.err.count("\n") == 1


def test_a_real_run_tells_its_starts_and_what_it_showed(workplace: Workplace) -> None:
    workplace.write(
        "mine.py",
        "from samestep.tasks.regression import Regression\n"
        "class Mine(Regression):\n"
        "    def show(self, model):\n        return f'<{model.training}>'\n"
        "    def after_step(self, model, step):\n        if step == 13 and not __import__('pathlib').Path('again').exists():\n"
        "            __import__('pathlib').Path('again').touch(); __import__('os').kill(__import__('os').getpid(), 9)\n",
    )
    workplace.write(
        "mine.yaml",
        "task: mine.py:Mine\nglobal_batch_size: 10\nmicro_batch_size: 5\nsteps: 20\noptimizer: {name: adam, lr: 0.001}\n"
        "checkpoint: {every: 5, background: false}\ntrack: {every: 1, wandb: off}\n",
    )
    assert workplace.train("mine.yaml", "--run", "mine").code == -9
    assert workplace.train("mine.yaml", "--run", "mine").code == 0
    record = read(RunFolder(workplace.path / "runs/mine"), "done")
    first, second = starts_of(record)
    assert (first.resumed_from, first.furthest, first.kept, first.end) == (0, 12, 10, "running")
    assert (second.resumed_from, second.furthest, second.kept, second.end) == (10, 20, 10, "done")
    assert record.shown == "<False>"
    found = time_split(record, [first, second])
    assert 0 < found["redone"] < first.ended - first.begun
    assert found["starting"] / 2 > 0.2
    assert all(seconds >= 0 for seconds in found.values())
    assert sum(found.values()) == pytest.approx(second.ended - first.launched)


def chromium() -> str | None:
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


FRAME = """<!doctype html><meta charset="utf-8"><body><iframe src="/PAGE" width="400" height="900"></iframe><script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, root = page.documentElement, all = part => [...page.querySelectorAll(part)];
  const broken = all("body *").filter(part => getComputedStyle(part).overflowWrap !== "normal");
  document.body.innerHTML = `<pre>${JSON.stringify({
    charts: Number(root.dataset.charts), canvases: all("canvas").length, theme: root.dataset.theme, width: root.scrollWidth,
    broken: broken.length, values: all(".u-value").map(part => part.textContent),
    dashed: all(".u-marker").filter(part => part.style.borderStyle.includes("dashed")).length,
    logs: all(".log[aria-pressed=true]").length, best: page.body.textContent.includes("best ○ 0.5 at step 50"),
  })}</pre>`;
};
</script></body>"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_a_browser_draws_it_on_a_narrow_page_without_an_error_or_a_request(tmp_path: Path) -> None:
    tormented(tmp_path, best={"metric": "eval_loss", "value": 0.5, "step": 50})
    names = sweep(tmp_path, 9)
    asked: list[str] = []

    class Asked(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            name = self.path.strip("/")
            if name.startswith("frame/"):
                self.wfile.write(FRAME.replace("PAGE", name.removeprefix("frame/")).encode())
            elif name in ("one.html", "all.html"):
                self.wfile.write((tmp_path / name).read_bytes())

        def log_message(self, format: str, *args: object) -> None: ...

    report(("tormented",), str(tmp_path), tmp_path / "one.html")
    report(("tormented", *names), str(tmp_path), tmp_path / "all.html")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            # Eight runs are in colour, and have one learning rate, gradient norm and throughput: seven lie on the first.
            for page, plots, dashed, logs in (("one.html", 4, 0, 0), ("all.html", 5, 21, 0)):
                address = f"http://127.0.0.1:{server.server_port}/frame/{page}"
                dom, log = _opened(address, tmp_path / page.replace("html", "profile"))
                assert "CONSOLE" not in log, log
                found = json.loads(dom.partition("<pre>")[2].partition("</pre>")[0])
                assert (found["charts"], found["canvases"], found["theme"]) == (plots, plots, "light")
                assert found["width"] <= 400
                assert found["broken"] == 0
                assert all(any(map(str.isdigit, value)) for value in found["values"])
                assert (found["dashed"], found["logs"]) == (dashed, logs)
                assert found["best"] == (page == "one.html")
        finally:
            server.shutdown()
    assert [path for path in asked if path != "/favicon.ico"] == [
        "/frame/one.html",
        "/one.html",
        "/frame/all.html",
        "/all.html",
    ]


def _opened(address: str, profile: Path) -> tuple[str, str]:
    """The page once its scripts have run, and what Chromium logged: the page's errors are lines with CONSOLE."""
    browser = chromium()
    assert browser is not None
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    words += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [browser, *words, f"--user-data-dir={profile}", "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout, done.stderr
