"""Commands that slurm/ types, and people do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


def add_internal(group: click.Group) -> None:
    for command in (launcher, job, node):
        group.add_command(command)


@click.command(hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.option("--refused", type=click.Path(path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def launcher(refused: Path | None, folder: Path, words: tuple[str, ...]) -> None:
    """For slurm/: `accelerate launch WORDS`, with signals and errors treated as a run needs it."""
    from samestep.commands import launcher as command
    from samestep.run.folder import RunFolder

    sys.exit(command.launch(words, RunFolder(folder), refused))


@click.command(hidden=True)
@click.argument("config")
@click.option("--run", metavar="NAME")
@click.option("--sweep", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1)
def job(config: str, run: str | None, sweep: Path | None, overrides: tuple[str, ...]) -> None:
    """For slurm/*.sbatch: run a SLURM job to its end."""
    from samestep.slurm import job as command

    command.job(config, run, sweep, overrides)


@click.command(hidden=True)
@click.argument("plan")
def node(plan: str) -> None:
    """For a SLURM job's script: one node's part of it."""
    from samestep.slurm import node as command

    sys.exit(command.node(json.loads(plan)))
