"""`samestep report`: one or several runs as a page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from samestep.commands.status import facts, one_run
from samestep.errors import UsageError
from samestep.report import page, read
from samestep.run.disk import write_atomically


def report(runs: tuple[str, ...], folder: str, out: Path | None) -> Path:
    """Write the page, and return where: by default into the run's folder, for several or one in a store into this one."""
    folders = [one_run(run, folder) for run in dict.fromkeys(runs)]
    records = [read(found, fact["state"]) for found, fact in zip(folders, facts(folders), strict=True)]
    is_own = len(folders) == 1 and folders[0].store is None
    place = out or (folders[0].report if is_own else Path(folders[0].report.name))
    try:
        write_atomically(place, page(records))
    except OSError as error:
        raise UsageError(f"{place}: could not be written ({error.strerror}); write --out FILE") from None
    return place
