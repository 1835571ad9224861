"""The code that a submitted job runs: copied as it is now, so that no later edit reaches it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from samestep.errors import UsageError
from samestep.run.sensitive import why_secret
from samestep.runtime.shipped import shipped
from samestep.slurm.controller import code_root

_KEPT = {".py", ".yaml", ".yml", ".json", ".toml", ".txt", ".sh"}
_LARGEST_BYTES = 1_000_000
_MOST_FILES = 5_000


def keep_code(folder: Path) -> dict[str, str]:
    """Copy the small text files of the working folder, and samestep itself, to where no later edit reaches them.

    Returns those that are left out, for each of them why it looks like a secret.
    """
    secrets = {}
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(code_root(), aside / ".samestep" / "samestep", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped() / "configs", aside / ".samestep/samestep/shipped/configs", dirs_exist_ok=True)
    here = Path.cwd()
    for number, path in enumerate(_files(here)):
        if number >= _MOST_FILES:
            raise UsageError(
                f"{here}: found more than {_MOST_FILES} source files to keep; submit from the project's own folder"
            )
        if why := why_secret(path):
            secrets[str(path.relative_to(here))] = why
            continue
        target = aside / path.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    aside.rename(folder)
    return secrets


def _files(here: Path) -> list[Path]:
    """Sources under a folder: what git knows and does not ignore, or else everything outside hidden folders and runs."""
    listed = subprocess.run(
        ["git", "-C", str(here), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [here / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        found = []
        for top, folders, names in os.walk(here):
            # A folder of its own that holds runs, or a virtual environment, is not this project's source.
            folders[:] = [
                name for name in folders if name[0] != "." and name != "__pycache__" and not _is_foreign(Path(top) / name)
            ]
            found += [Path(top) / name for name in names]
    return [path for path in found if path.suffix in _KEPT and path.is_file() and path.stat().st_size <= _LARGEST_BYTES]


def _is_foreign(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or any(folder.glob("*/state.json")) or any(folder.glob("*/submitted.json"))
