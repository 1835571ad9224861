"""The commands on the bits: are they the same, where do two runs part, and what did a step compute?"""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("config")
@click.option("--processes", metavar="1,2,4", help="The world sizes to compare; by default those that fit on this machine.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--shard", "shards", is_flag=True, help="Compare sharded runs with unsharded ones too.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def verify(config: str, processes: str | None, steps: int, shards: bool, overrides: tuple[str, ...]) -> None:
    """Run the first steps of CONFIG at several world sizes here, and compare them bit for bit.

    Exits with 0 only if all are the same; otherwise it names the first step and gradient that differ, and what that looks like.

    \b
    Examples:
      samestep verify mine.yaml
      samestep verify mine.yaml --processes 1,3,8 --steps 20 device=cpu
      samestep verify mine.yaml --processes 1,4 --shard
    """
    from samestep.commands import verify as command

    click.echo(command.verify(config, processes, steps, overrides, shards))


@click.command()
@click.argument("run_a")
@click.argument("run_b")
def diff(run_a: str, run_b: str) -> None:
    """Name the first step where RUN_A and RUN_B part, with the values on both sides, and how config, machine and code differ.

    Exits with 1 if they part. Runs with track.every=1 and track.fingerprint=true part where they first differ, to the bit.

    \b
    Example:
      samestep diff first second
    """
    from samestep.commands import diff as command

    same, text = command.diff(run_a, run_b)
    click.echo(text)
    sys.exit(0 if same else 1)


@click.command()
@click.argument("run")
@click.option("--step", type=click.IntRange(min=1), required=True, help="The step to lay open, from 1.")
@click.option("--break", "stop_before", is_flag=True, help="Stop in pdb before that step's first forward.")
def replay(run: str, step: int, stop_before: bool) -> None:
    """Replay RUN to a step on whatever is here, check each tracked step against the record, and show what that step computed.

    \b
    Examples:
      samestep replay first --step 412
      samestep replay first --step 412 --break
    """
    from samestep.commands.find_run import recorded

    folder, config = recorded(run)
    from samestep.commands import replay as command

    command.replay(folder, config, step, stop_before)


def add_comparing(cli: click.Group) -> None:
    for command in (verify, diff, replay):
        cli.add_command(command)
