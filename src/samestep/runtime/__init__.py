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

__all__ = [
    "Runtime",
    "end_with_launcher",
    "end_with_parent",
    "error_file",
    "network_interface",
    "prepare_environment",
    "processes_here",
    "read_runtime",
    "refuse_another_world_size",
    "visible_gpus",
]
