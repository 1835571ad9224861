"""What a run's folder holds: where things lie, who owns it, its rows, and the code that its numbers come from."""

from samestep.run.disk import make_durable, write_atomically
from samestep.run.folder import RunFolder
from samestep.run.names import check_name, default_name, no_such_run
from samestep.run.paths import RunPaths

__all__ = [
    "RunFolder",
    "RunPaths",
    "check_name",
    "default_name",
    "make_durable",
    "no_such_run",
    "write_atomically",
]
