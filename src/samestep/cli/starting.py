"""The commands that start with what samestep brings: a launcher for this machine, the scripts, its version."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("words", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="By default one for each GPU, or for each CPU core.")
@click.option("--run", metavar="NAME", help="A new name starts a run, a known one resumes it, a finished one says so.")
def launch(words: tuple[str, ...], processes: int | None, run: str | None) -> None:
    """Train CONFIG on every device of this machine; without one, the demo.

    \b
    Examples:
      samestep launch
      samestep launch mine.yaml optimizer.lr=3e-3
      samestep launch mine.yaml --processes 2 --run first

    \b
    Exit codes: 0 done; 1 failed; 2 what was typed is wrong; 75 stopped on purpose and saved: run the same line again.
    """
    from samestep.commands import launch as command
    from samestep.errors import UsageError

    configs = [word for word in words if "=" not in word]
    if len(configs) > 1:
        raise UsageError(f"found two configs, {' '.join(configs)}; write one, and key=value after it")
    overrides = tuple(word for word in words if "=" in word)
    code, said = command.launch(configs[0] if configs else None, run, processes, overrides)
    if said:
        click.echo(said, err=True)
    sys.exit(code)


@click.command()
@click.argument("config")
@click.argument("grid", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="What its runs' names begin with; by default CONFIG-GRID.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="So many runs at once; by default one for each device.")
@click.option("--random", "draws", type=click.IntRange(min=1), metavar="N", help="Draw N runs of the grid.")
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Of the draws; more of one seed begin with the same.")
@click.option("--dry-run", is_flag=True, help="List the runs, and start none.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def sweep(
    config: str,
    grid: Path,
    name: str | None,
    jobs: int | None,
    draws: int | None,
    seed: int | None,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the runs of GRID on this machine, several at once; the same line again goes on with what is left.

    \b
    GRID is YAML, a list of values for each key (every combination is a run), or text, a line of KEY=VALUE for each run.

    \b
    Examples:
      samestep sweep mine.yaml grid.yaml
      samestep sweep mine.yaml grid.yaml --jobs 2 epochs=5
      samestep sweep mine.yaml grid.yaml --random 20 --seed 1 --dry-run

    \b
    Exit codes: 0 all done; 1 some failed; 2 what was typed is wrong; 75 stopped on purpose and saved: run the same line again.
    """
    from samestep.commands import sweep as command

    command.sweep(config, grid, overrides, name, jobs, draws, seed, dry_run)


@click.command()
@click.argument("folder")
def init(folder: str) -> None:
    """Lay launch/, slurm/ and configs/ out in FOLDER, ready to type and to change. What is there already is left alone.

    \b
    Example:
      samestep init .
    """
    from samestep.commands import init as command

    click.echo(command.init(folder))


def version_shown(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from samestep.commands import version as command

        click.echo("\n".join(command.versions()))
        context.exit()


version = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=version_shown,
    help="The versions of samestep and of what the bits depend on.",
)


def add_starting(cli: click.Group) -> None:
    for command in (launch, sweep, init):
        cli.add_command(command)
