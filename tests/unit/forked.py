"""A command line in a process forked off this one, so that torch's import is paid once for many."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401  # here once, before the first fork
import datasets  # noqa: F401
import torch  # noqa: F401

import samestep.session  # noqa: F401
from samestep import cli


def forked(folder: Path, *words: str, before: Callable[[], object] = lambda: None) -> tuple[int, list[str]]:
    """The exit code of `samestep WORDS` in `folder`, and the lines of both its streams.

    Args:
        before: called in that process first, to make its machine another.
    """
    said = folder / "said.txt"
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            os.environ.update(PYTHONHASHSEED="0", WANDB_MODE="offline", CUDA_VISIBLE_DEVICES="")
            for number in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sys.argv = ["samestep", *words]
            before()
            cli.main()
        except SystemExit as leaving:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(leaving.code or 0))
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text().splitlines()
