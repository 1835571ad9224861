"""Breaks the product in ways that matter, one at a time, and says which test sees it: a check of the checks.

    python tests/promise/mutants.py                     all of them, in about ten minutes
    python tests/promise/mutants.py base-rate sighup    some of them
    python tests/promise/mutants.py --list

Each is applied to a copy of the project, never to the project itself, and the tests named beside it run there. First of all
those tests run on a copy that nothing has broken, for one that fails anyway sees nothing. Exit code 1 if any mutant lives.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("src", "tests", "configs", "docs", "examples", "launch", "slurm", "templates", "pyproject.toml")
_LONGEST_S = 600
_FORKING = multiprocessing.get_context("forkserver")  # with all that is slow to import, and nothing of samestep
_FORKING.set_forkserver_preload(["accelerate", "datasets", "pytest", "torch._dynamo"])
_PRELOADED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of modules that are there already
_SERVERS = 3  # the cases' own, the drawn runs', and the oracle's, which is asked beside these
_ALL_PASSED, _SOME_FAILED = 0, 1  # pytest's exit codes; any other is a mistake here, and sees nothing


class Verdict(NamedTuple):
    """What the tests said of one mutant."""

    is_seen: bool
    words: str  # the tests that failed, or why there are none
    took_s: float


def broken(mutant: Mutant, root: Path = ROOT) -> str:
    """The mutant's file as the patch leaves it; ValueError if it does not apply."""
    text = (root / "src/samestep" / mutant.file).read_text()
    if (times := text.count(mutant.find)) != 1:
        raise ValueError(f"{mutant.name}: found the text {times} times in {mutant.file}; write one that stands there once")
    changed = text.replace(mutant.find, mutant.put)
    compile(changed, mutant.file, "exec")
    return changed


class _Server:
    """The ranks' server as a fork of this process, in the place of a Popen: it would import for long what is here already."""

    def __init__(self, serve: Callable[[], None], others: Sequence[_Server] = ()) -> None:
        asked, ask = os.pipe()
        answers, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            os.dup2(asked, 0)
            os.dup2(answer, 1)
            for handle in (asked, ask, answers, answer):
                os.close(handle)
            for other in others:  # which would not hear of its end while somebody else can still ask it
                other.stdin.close()
                other.stdout.close()
            sys.stdin = os.fdopen(0)
            try:
                serve()
            finally:
                os._exit(0)
        os.close(asked)
        os.close(answer)
        self.stdin: TextIO = os.fdopen(ask, "w")
        self.stdout: TextIO = os.fdopen(answers)

    def wait(self, timeout: float) -> None:
        os.waitpid(self._pid, 0)


def _pytest(copy: Path, words: list[str]) -> None:
    """In a process of its own: pytest, on the copy's own modules and tests."""
    said = os.open(copy / "said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(copy)
    multiprocessing.set_start_method(None, force=True)  # a run's loader processes start as they do anywhere
    os.environ["COLUMNS"] = "1000"  # or pytest cuts off why a test failed
    os.environ["PYTHONPATH"] = str(copy / "src")  # for what the tests start; it goes before the installed one
    here = str(Path(__file__).parent)
    sys.path[:] = [str(copy / "src"), *(place for place in sys.path if place != here)]
    del sys.modules["mutants_list"]
    if any("/promise/" in word for word in words):
        sys.path.insert(0, str(copy / "tests/promise"))
        import ranks

        servers: list[_Server] = []
        for _ in range(_SERVERS):
            servers.append(_Server(ranks.serve, others=servers))
        ranks.subprocess = types.SimpleNamespace(Popen=lambda *words, **options: servers.pop(), PIPE=None)  # type: ignore[assignment, attr-defined]
    import pytest

    code = int(pytest.main(words))
    sys.stdout.flush()
    os._exit(code)


def run_tests(tests: list[str], mutant: Mutant | None) -> Verdict:
    """Run tests in a copy of the project with the mutant in it."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in _COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy)
        if mutant is not None:
            (copy / "src/samestep" / mutant.file).write_text(broken(mutant))
        words = [
            "--tb=no",
            "--timeout=200",
            "-p",
            "no:cacheprovider",
            *_PRELOADED,
            *tests,
            *(["-x"] if mutant is not None else []),
        ]
        child = _FORKING.Process(target=_pytest, args=(copy, words))
        child.start()
        child.join(None if mutant is None else _LONGEST_S)
        if child.exitcode is None:
            child.kill()
            child.join()
            return Verdict(False, f"the tests did not end in {_LONGEST_S} s", time.monotonic() - begun)
        said = (copy / "said.txt").read_text()
    took_s = time.monotonic() - begun
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", said, re.MULTILINE)
    if re.search(r"^FAILED .* - Failed: Timeout", said, re.MULTILINE):  # by a busy machine, it may be
        return Verdict(False, f"{failed[0]} timed out", took_s)
    if child.exitcode == _ALL_PASSED:
        return Verdict(False, "LIVES", took_s)
    if child.exitcode == _SOME_FAILED and failed:
        return Verdict(True, "; ".join(failed), took_s)
    return Verdict(False, f"pytest's exit code {child.exitcode}: {said[-400:]}", took_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the mutants to try; all without any")
    parser.add_argument("--list", action="store_true", help="show the names and what each breaks, and run nothing")
    parser.add_argument("--at-a-time", type=int, default=os.cpu_count() or 1, metavar="N", help="mutants tried side by side")
    parser.add_argument("--skip-unbroken", action="store_true", help="trust that the tests pass where nothing is broken")
    asked = parser.parse_args()
    if unknown := set(asked.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"found {', '.join(sorted(unknown))}; --list shows the names")
    chosen = [mutant for mutant in MUTANTS if not asked.names or mutant.name in asked.names]
    for mutant in chosen:
        broken(mutant)
        if asked.list:
            print(f"{mutant.name:32s} {mutant.file:28s} {' '.join(mutant.tests)}")
    if asked.list:
        return 0
    everything = sorted({word for mutant in chosen for word in mutant.tests if word.startswith("tests/")})
    if not asked.skip_unbroken:
        unbroken = run_tests(everything, None)
        if unbroken.words != "LIVES":
            print(f"without any mutant these tests fail: {unbroken.words}")
            return 1
        print(f"{'nothing broken':32s} the tests pass ({unbroken.took_s:.0f} s)", flush=True)
    alive = []
    with concurrent.futures.ThreadPoolExecutor(asked.at_a_time) as pool:
        verdicts = {pool.submit(run_tests, list(mutant.tests), mutant): mutant for mutant in chosen}
        for number, done in enumerate(concurrent.futures.as_completed(verdicts), 1):
            mutant, verdict = verdicts[done], done.result()
            print(f"{number:3d}/{len(chosen)} {mutant.name:32s} {verdict.words} ({verdict.took_s:.0f} s)", flush=True)
            if not verdict.is_seen:
                alive.append(mutant.name)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} seen" + (f"; alive: {', '.join(alive)}" if alive else ""))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
