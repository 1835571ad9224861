"""The order of a set of words hangs on PYTHONHASHSEED, and a vocabulary made of one on that: one number for every process."""

from __future__ import annotations

import os
import sys

# The commands that ask the task for data or a model here.
_READERS = {"train", "launch", "replay", "evaluate", "check", "export"}
_DEBUGGERS = {"bdb", "pdb", "pydevd"}


def fix_hash_order() -> None:
    """Let a command that reads the data begin again with PYTHONHASHSEED=0, unless a number stands there.

    Called before anything else is imported, for it is paid twice. A debugger would lose its hold of the process: it keeps it.
    """
    if _READERS.isdisjoint(sys.argv[1:2]) or os.environ.get("PYTHONHASHSEED", "random") not in ("", "random"):
        return
    if sys.flags.ignore_environment or sys.gettrace() is not None or not _DEBUGGERS.isdisjoint(sys.modules):
        return
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
