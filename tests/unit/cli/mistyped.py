"""Mistyped command lines, one after another in this process: `python tests/unit/cli/mistyped.py --seed N`.

Each must end in exit code 2 and lines of samestep's own, or do no harm, and torch is not there to be imported: a command that
asks for it has found nothing wrong with its words. Exits with 1 at the first that does otherwise, shrunk by hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from mistyped_list import FILES, GOOD, KEYS, LINES

from samestep import cli
from samestep.cli import root
from samestep.commands import pin, verify

CONFIG_COMMANDS = ("train", "launch", "check", "verify", "pin", "submit")
RUN_COMMANDS = ("evaluate", "export", "logs", "prove", "replay", "status", "diff")
WORDS = "=.:/ \t\n-_#&*!|>'\"%@`{}[],?~“”é\0\u200b0123456789abcdefnos"


class TorchAsked(BaseException):
    """So far nothing was wrong."""


def _ask_for_torch(*words: object) -> None:
    raise TorchAsked


class _NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] in ("torch", "datasets", "accelerate", "wandb"):
            raise TorchAsked(name)


def outcome(words: Sequence[str]) -> tuple[int, str]:
    """The exit code of a command line (0 if it got as far as torch), and what it wrote to stderr."""
    sys.argv = ["samestep", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as leaving:
            return int(leaving.code or 0), err.getvalue()
        except TorchAsked:
            return 0, err.getvalue()
    raise AssertionError("a command ends the process")


def check(words: Sequence[str], told: str = "") -> None:
    code, err = outcome(words)
    about = f"{list(words)!r} exits with {code}: {err}"
    assert code in (0, 2), about
    assert (code == 2) == bool(err), about
    assert told in err, about
    assert "Traceback" not in err, about
    if code == 2:
        assert err.startswith("samestep: "), about


@st.composite
def mistyped(draw: st.DrawFn) -> tuple[list[str], str]:
    """A command line with one thing wrong, and the right key if it is a key that is wrong."""
    kind = draw(st.sampled_from(["key", "value", "text", "words", "run"]))
    command = draw(st.sampled_from(CONFIG_COMMANDS))
    more = ["--time=5", "--dry-run"] if command == "submit" else []
    if kind == "key":
        key = draw(st.sampled_from(KEYS))
        *above, last = key.split(".")
        place = draw(st.integers(0, len(last) - 1))
        other = draw(st.sampled_from("xqzj"))
        typo = draw(
            st.sampled_from(
                [
                    last[:place] + other + last[place + 1 :],
                    last[:place] + other + last[place:],
                    last[:place] + last[place + 1 :],
                    last + "s",
                    last.upper(),
                    last.replace("_", "-"),
                    last.title(),
                ]
            )
        )
        known = {name.rpartition(".")[2] for name in KEYS}
        is_wrong = len(last) > 3 and typo not in known and not above  # in a mapping of free keys nobody knows
        return [command, "good.yaml", f"{'.'.join([*above, typo])}=1", *more], "did you mean" if is_wrong else ""
    if kind == "value":
        value = draw(
            st.text(WORDS, max_size=8) | st.sampled_from(["-1", "0", "1e3", "9" * 200, "nan", ".nan", "[]", "{}", "~"])
        )
        return [command, "good.yaml", f"{draw(st.sampled_from(KEYS))}={value}", *more], ""
    if kind == "text":
        place, length = draw(st.integers(0, len(GOOD))), draw(st.integers(0, 3))
        text = GOOD[:place] + draw(st.text(WORDS, max_size=3)) + GOOD[place + length :]
        Path("drawn.yaml").write_text(text)
        return [command, "drawn.yaml", *more], ""
    if kind == "words":
        word = st.text(WORDS, max_size=6) | st.sampled_from(["--run", "--steps", "--help", "-x", "good.yaml", "steps=3", "--"])
        return [draw(st.sampled_from([command, "", "trian", "--verson"])), *draw(st.lists(word, max_size=4))], ""
    run = draw(
        st.sampled_from(["first", "firts", "broken", "../first", "runs/first", "", "x" * 300]) | st.text(WORDS, max_size=5)
    )
    command = draw(st.sampled_from(RUN_COMMANDS))
    more = {"export": ["out.safetensors"], "replay": ["--step", "1"], "diff": ["broken"], "status": ["--json"]}.get(command, [])
    return [command, run, *more], ""


def prepare() -> None:
    """Configs, runs and a scheduler to be wrong about, in the working folder."""
    for name, content in {**FILES, "good.yaml": GOOD}.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("folder.yaml").mkdir()
    state = {"status": "done", "step": 20, "weights": "00", "kind": {}, "code": {}, "wandb": "x"}
    for run, text in (("first", json.dumps(state)), ("broken", "{")):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "state.json").write_text(text)
        Path("runs", run, "config.yaml").write_text(GOOD)
        Path("runs", run, "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "time": 1.0}\n')
    Path("bin").mkdir()
    Path("bin/sbatch").write_text("#!/bin/sh\nexit 0\n")
    Path("bin/sbatch").chmod(0o755)
    os.environ["PATH"] = f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--examples", type=int, default=900)
    asked = parser.parse_args()
    sys.meta_path.insert(0, _NoTorch())
    root.outlive_readers = lambda: None  # type: ignore[attr-defined]  # stdout is ours
    vars(verify)["start"] = vars(pin)["start"] = _ask_for_torch  # they train in other processes
    os.environ["PYTHONHASHSEED"] = "0"  # or `train` begins again in another process
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        for words, told in LINES:
            check(words, told)

        @seed(asked.seed)
        @settings(
            max_examples=asked.examples,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(mistyped())
        def fuzz(case: tuple[list[str], str]) -> None:
            words, told = case
            if not any("\0" in word for word in words):  # no shell can pass that
                check(words, told)

        fuzz()
        os.chdir("/")
    print(f"{len(LINES)} lines of the list, {asked.examples} drawn with seed {asked.seed}")


if __name__ == "__main__":
    main()
