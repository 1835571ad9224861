"""`samestep check`: what would go wrong with a config, found in seconds, before anything is queued."""

from __future__ import annotations

from samestep.config import load_config
from samestep.config.preflight import Line, elsewhere, room, shares, sizes_asked
from samestep.runtime import prepare_environment, processes_here, read_runtime


def check(
    config_path: str, processes: str | None, nodes: int | None, fit: bool, bits: bool, overrides: tuple[str, ...]
) -> list[Line]:
    """Look at the config, its task, a micro-batch, memory, devices, disk and trackers.

    Args:
        processes: the world sizes asked about, `1,2,4`; by default what fits.
        nodes: how many machines like this one, or that share the processes asked about.
        fit: also find the largest micro_batch_size for which the memory suffices.
        bits: also run a few steps at several world sizes and compare the weights, as `samestep verify` does.

    Raises UsageError for mistakes in the config itself, before torch is imported.
    """
    config, origins = load_config(config_path, overrides)
    typed = [key for key, origin in origins.items() if origin == "command line"]
    words = f"{len(origins) - len(typed)} values of {config_path}" + (f"; typed: {', '.join(typed)}" if typed else "")
    runtime, here = read_runtime(), config.processes or processes_here(config.device, config.num_leaves)
    asked = sizes_asked(processes, nodes, here)
    lines = [Line("ok", "config", words), *shares(config, asked, nodes, here)]
    room(config.runs)
    lines += elsewhere(config)
    prepare_environment(runtime, config.threads)

    from samestep.commands.check.machine import devices, kept_bits, trackers, versions  # these import torch
    from samestep.commands.check.model import look

    lines += look(config, runtime, here, max([here, *asked]) if fit else 0)
    if bits and not any(line.level == "error" for line in lines):
        lines.append(kept_bits(config_path, processes, overrides))
    return [*lines, devices(config), trackers(config), versions()]
