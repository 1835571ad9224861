"""The commands that start with what samestep brings: a launcher for this machine, the scripts, its version."""

from __future__ import annotations

import sys

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
    for command in (launch, init):
        cli.add_command(command)
