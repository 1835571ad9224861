"""The code that a run's numbers come from: what a submitted job keeps of it, its versions, and what has changed since."""

from __future__ import annotations

import difflib
import inspect
import os
import stat
import sys
from pathlib import Path

import xxhash

from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.sensitive import why_secret

_OWN = Path(__file__).parents[1]


def kept_code() -> Path | None:
    """The folder where `samestep submit` kept the working folder's sources for this process, as they were; None without it."""
    found = os.environ.get("SAMESTEP_CODE")
    return Path(found) if found else None


def as_kept(path: str | Path) -> Path:
    """The file as it was kept, or itself where nothing was."""
    code, file = kept_code(), Path(path)
    if code is None or not file.absolute().is_relative_to(Path.cwd()):
        return file
    kept = code / file.absolute().relative_to(Path.cwd())
    return kept if kept.is_file() else file


def versions(task: object) -> dict[str, str]:
    """A checksum of samestep itself, and of each file of the task's: its own, and those that it imports from its folder."""
    digest = xxhash.xxh3_64()
    for file in sorted(_OWN.rglob("*.py")):
        digest.update(file.read_bytes())
    files = {name: xxhash.xxh3_64_hexdigest(path.read_bytes()) for name, path in _files(task).items()}
    return {"samestep": digest.hexdigest(), **files}


def keep(folder: RunFolder, task: object) -> dict[str, str]:
    """Keep the task's files beside the run, so that a later start can say what has changed.

    Returns those that are left out, for each of them why it looks like a secret.
    """
    secrets = {}
    for name, path in _files(task).items():
        kept, text, mode = folder.sources / name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        if why := why_secret(path):
            secrets[name] = why
        elif not kept.exists() or kept.read_bytes() != text or stat.S_IMODE(kept.stat().st_mode) != mode:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, text, mode)
    return secrets


def changes(folder: RunFolder, before: dict[str, str], task: object) -> str:
    """What differs from the versions `before`, as `mine.py +3 -1, samestep`; empty if nothing does."""
    now, files = versions(task), _files(task)
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(_stat(folder.sources / name, files[name], name) if name in files else name for name in changed)


def _stat(kept: Path, path: Path, name: str) -> str:
    if why_secret(path):  # nothing of it was kept
        return name
    old = kept.read_text(errors="replace").splitlines() if kept.exists() else []
    marks = [line[0] for line in difflib.ndiff(old, path.read_text(errors="replace").splitlines())]
    return f"{name} +{marks.count('+')} -{marks.count('-')}"


def _files(task: object) -> dict[str, Path]:
    """The task's files by their names under its folder; none for a task of samestep's own."""
    own = Path(inspect.getfile(type(task))).absolute()
    if own.is_relative_to(_OWN):
        return {}
    root = next((folder for folder in (kept_code(), Path.cwd()) if folder and own.is_relative_to(folder)), own.parent)
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    below = f"{root}{os.sep}"  # as text: thousands of modules are loaded, and few of them are the task's
    loaded = {Path(file).absolute() for file in files if file and (file.startswith(below) or not os.path.isabs(file))}
    found = {}
    for path in sorted({own, *loaded}):
        if path.suffix == ".py" and path.is_relative_to(root) and not path.is_relative_to(_OWN) and path.is_file():
            parts = path.relative_to(root).parts
            if not any(part[0] == "." or part == "site-packages" for part in parts):
                found["/".join(parts)] = path
    return found
