"""`samestep init`: the scripts and configs that come with samestep, laid out to be typed and changed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from samestep.errors import UsageError
from samestep.runtime.shipped import shipped

_LAID_OUT = ("launch", "slurm", "configs")
_ANY_PYTHON = "  python=${PYTHON:-python3}"


def init(folder: str) -> str:
    """Copy launch/, slurm/ and configs/ into a folder. Returns what to type next.

    The scripts run the Python that runs this. Raises UsageError if a file is there already.
    """
    root, source = Path(folder), shipped()
    files = [path.relative_to(source) for top in _LAID_OUT for path in sorted((source / top).rglob("*")) if path.is_file()]
    there = [str(root / file) for file in files if (root / file).exists()]
    if there:
        raise UsageError(f"{', '.join(there)}: there already; write another folder, or move what is there away")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file, root / file)
    setup = root / "launch/setup.sh"
    this = _ANY_PYTHON.replace("python3", shlex.quote(sys.executable))
    setup.write_text(setup.read_text().replace(_ANY_PYTHON, this))
    return f"wrote {', '.join(f'{root / top}/' for top in _LAID_OUT)}; next: bash {root / 'launch/local.sh'}"
