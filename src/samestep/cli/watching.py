"""The commands that look at runs, under way and ended."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", required=False)
@click.option("--runs", default="runs", show_default=True, help="The folder of run folders.")
@click.option("--follow", is_flag=True, help="Show it again every two seconds, until Ctrl-C or the run's end.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(run: str | None, runs: str, follow: bool, as_json: bool) -> None:
    """One line for RUN, or for each run: state, step, loss, rate, time left, job, nodes, restarts, last checkpoint.

    \b
    Examples:
      samestep status
      samestep status first --follow
    """
    from samestep.commands import status as command

    for text in command.shown(run, runs, follow, as_json):
        if follow and sys.stdout.isatty():
            click.clear()
        click.echo(text)


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), help="This rank's own log: stacks and tracebacks.")
@click.option("--runs", default="runs", show_default=True, help="The folder of run folders.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
def logs(run: str, rank: int | None, runs: str, follow: bool) -> None:
    """What RUN printed, here or in its job, or one rank's log.

    \b
    Examples:
      samestep logs first -f
      samestep logs first --rank 3 --follow
    """
    from samestep.commands import status as command

    for line in command.log_lines(command.one_run(run, runs), rank, follow):
        click.echo(line, nl=False)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
@click.option("--runs", default="runs", show_default=True, help="The folder of run folders.")
def report(names: tuple[str, ...], out: Path | None, runs: str) -> None:
    """Write a page about RUN, or about several: curves, where the time went, config, machine. It needs no network.

    \b
    Examples:
      samestep report first                       runs/first/report.html
      samestep report runs/sweep-*                one page to compare them all, ./report.html
      samestep report first second --out both.html
    """
    from samestep.commands import report as command

    click.echo(command.report(names, runs, out))


def add_watching(cli: click.Group) -> None:
    for command in (status, logs, report):
        cli.add_command(command)
