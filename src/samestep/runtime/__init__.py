"""Where this process runs: rank and launcher, read from the environment here alone (a job's nodes are `slurm`'s)."""

from samestep.runtime.node import node_name
from samestep.runtime.ranks import (
    Runtime,
    end_with_launcher,
    end_with_parent,
    gpu_names,
    has_rank,
    leave_the_others,
    network_interface,
    prepare_environment,
    processes_here,
    read_runtime,
    refuse_another_world_size,
    tell_launcher,
    visible_gpus,
)

__all__ = [
    "Runtime",
    "end_with_launcher",
    "end_with_parent",
    "gpu_names",
    "has_rank",
    "leave_the_others",
    "network_interface",
    "node_name",
    "prepare_environment",
    "processes_here",
    "read_runtime",
    "refuse_another_world_size",
    "tell_launcher",
    "visible_gpus",
]
