"""Builds the parts of a run from its config, in order, trains, and takes them down."""

from samestep.session.accelerator import make_accelerator
from samestep.session.build import Plans, build, make_evaluator
from samestep.session.data import read_split
from samestep.session.failure import in_user_code, mistake_behind, record_failure
from samestep.session.run import run_training
from samestep.session.saving import make_saver

__all__ = [
    "Plans",
    "build",
    "in_user_code",
    "make_accelerator",
    "make_evaluator",
    "make_saver",
    "mistake_behind",
    "read_split",
    "record_failure",
    "run_training",
]
