"""Where this process runs: the only reader of rank, launcher and scheduler variables."""

from samestep.runtime.ranks import (
    Runtime,
    end_with_launcher,
    end_with_parent,
    error_file,
    network_interface,
    prepare_environment,
    processes_here,
    read_runtime,
    refuse_another_world_size,
    visible_gpus,
)
from samestep.runtime.slurm import (
    Job,
    JobState,
    code_root,
    dead,
    earlier_ranks,
    find_slurm,
    jobs_now,
    read_job,
    requeue_this_job,
    this_node,
)

__all__ = [
    "Job",
    "JobState",
    "Runtime",
    "code_root",
    "dead",
    "earlier_ranks",
    "end_with_launcher",
    "end_with_parent",
    "error_file",
    "find_slurm",
    "jobs_now",
    "network_interface",
    "prepare_environment",
    "processes_here",
    "read_job",
    "read_runtime",
    "refuse_another_world_size",
    "requeue_this_job",
    "this_node",
    "visible_gpus",
]
