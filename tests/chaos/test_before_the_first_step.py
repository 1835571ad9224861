"""A rank or the launcher dies between the first import and the first step: the same line again finishes, as if nothing was.

All twenty moments: `bash tests/run.sh -m "long or not long" tests/chaos/test_before_the_first_step.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import psutil
import pytest
from test_kills import SLOW, alive, check_traces, rows_of, start

from conftest import Workplace

CASE = SLOW.replace("steps: 90", "steps: 12")

# Every process of the run has this: the one that is doomed ends itself, or its launcher, just before it does what is named.
HOOK = """
import json, os, signal, sys

rank, victim, event, word, mark = json.loads(os.environ["DOOMED"])


def look(found, arguments):
    if found == event and word in str(arguments[:2]) and not os.path.exists(mark):
        os.mkdir(mark)
        os.kill(os.getppid() if victim == "its launcher" else os.getpid(), signal.SIGKILL)
        signal.pause()


if os.environ.get("RANK", "none") == rank:
    sys.addaudithook(look)
"""

MOMENTS = [  # of which rank, who is killed, before what
    ("1", "itself", "import", "'torch'"),
    ("0", "its launcher", "os.rename", "killed/config.yaml"),
    ("0", "itself", "os.rename", "killed/state.json"),
    ("none", "itself", "subprocess.Popen", "samestep"),  # the launcher, before the first rank
    ("0", "itself", "import", "'samestep.cli'"),
    ("0", "itself", "open", "case.yaml"),
    ("0", "itself", "import", "'numpy'"),
    ("1", "itself", "import", "'accelerate'"),
    ("0", "itself", "import", "'samestep.session.run'"),
    ("1", "itself", "open", "chaos_tasks"),
    ("0", "its launcher", "open", "chaos_tasks"),
    ("0", "itself", "os.mkdir", "runs/killed"),
    ("0", "itself", "open", "killed/.owner"),
    ("0", "itself", "fcntl.lockf", ""),
    ("0", "itself", "os.mkdir", "killed/starts"),
    ("0", "itself", "open", "starts/0001.json"),
    ("0", "its launcher", "open", "killed/sources/"),
    ("0", "itself", "open", "killed/.state.json."),
    ("1", "itself", "open", "killed/state.json"),
    ("0", "its launcher", "open", "logs/rank-0000.log"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An unbroken run's weights, and its folder."""
    workplace = Workplace(tmp_path_factory.mktemp("whole"))
    workplace.write("case.yaml", CASE)
    return workplace.train("case.yaml", "--run", "whole").weights, workplace.path / "runs/whole"


def of_the_run(doomed: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("DOOMED") == doomed and alive(process):
                found.append(process)
    return found


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=[] if number < 3 else pytest.mark.long) for number, moment in enumerate(MOMENTS)],
    ids=lambda moment: (
        f"{'rank ' + moment[0] if moment[0] != 'none' else 'launcher'} kills {moment[1]} before {moment[2]} {moment[3]}"
    ),
)
def test_the_same_line_again_finishes(workplace: Workplace, whole: tuple[str, Path], moment: tuple[str, ...]) -> None:
    weights, folder = whole
    workplace.write("case.yaml", CASE)
    (workplace.path / "hook").mkdir()
    workplace.write("hook/sitecustomize.py", HOOK)
    mark = workplace.path / "mark"
    doomed = json.dumps([*moment, str(mark)])
    workplace.env |= {"PYTHONPATH": str(workplace.path / "hook"), "DOOMED": doomed}
    launcher = start(workplace, 2)
    try:
        assert launcher.wait(90) != 0, (workplace.path / "out").read_text()
    finally:
        launcher.kill()
    until = time.monotonic() + 20
    while (left := of_the_run(doomed)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        process.kill()
    assert not left, "these outlive their launcher"
    assert mark.exists(), "the moment did not come"
    assert rows_of(workplace) == 0
    done = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert done.code == 0, done.err
    assert done.weights == weights
    assert done.out.startswith("fresh")
    shutil.copytree(folder, workplace.path / "runs/whole")
    check_traces(workplace, "killed", "whole")
    assert sorted(os.listdir(workplace.path / "runs")) == ["killed", "whole"]
