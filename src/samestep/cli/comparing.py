"""The commands on the bits: are they the same, where do two runs part, what did a step compute, and what else could follow?"""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option("--processes", metavar="1,2,4", help="The world sizes to compare; by default those that fit on this machine.")
@click.option("--steps", type=click.IntRange(min=1), help="How many; by default 5, or as many as are pinned.")
@click.option("--shard", "shards", is_flag=True, help="Compare sharded runs with unsharded ones too.")
@click.option("--against", type=click.Path(path_type=Path), metavar="FILE", help="Compare with pinned bits instead.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def verify(
    config: str, processes: str | None, steps: int | None, shards: bool, against: Path | None, overrides: tuple[str, ...]
) -> None:
    """Run the first steps of CONFIG at several world sizes here, and compare them bit for bit; or with those that were pinned.

    Exits with 0 only if all are the same; otherwise it names the first step and gradient that differ, and what that looks like.

    \b
    Examples:
      samestep verify mine.yaml
      samestep verify mine.yaml --processes 1,3,8 --steps 20 device=cpu
      samestep verify mine.yaml --processes 1,4 --shard
      samestep verify mine.yaml --against mine.bits.json      what samestep pin wrote; exit code 1: other bits, 2: no answer
    """
    if against is not None:
        from samestep.commands import pin as comparison
        from samestep.errors import UsageError

        if steps is not None or shards:
            raise UsageError(f"--against: {against} says how many steps; leave out {'--steps' if steps else '--shard'}")
        click.echo(comparison.compare(config, against, processes, overrides))
        return
    from samestep.commands import verify as command

    click.echo(command.verify(config, processes, 5 if steps is None else steps, overrides, shards))


@click.command()
@click.argument("config")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def pin(config: str, steps: int, overrides: tuple[str, ...]) -> None:
    """Write the bits of CONFIG's first steps into a small file beside it, for `samestep verify --against`.

    \b
    Examples:
      samestep pin mine.yaml                             writes mine.bits.json; put it beside your tests
      samestep pin mine.yaml --steps 50 with.width=16
    """
    from samestep.commands import pin as command

    click.echo(command.pin(config, steps, overrides))


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


@click.command()
@click.argument("run")
@click.option("--step", type=click.IntRange(min=1), required=True, help="Of the checkpoint to go on from.")
@click.option(
    "--run", "name", metavar="NAME", required=True, help="The branch's own name; the same line again goes on with it."
)
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="By default one for each GPU, or for each CPU core.")
@click.option("--later", is_flag=True, help="Make the branch, and train nothing yet.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def branch(run: str, step: int, name: str, processes: int | None, later: bool, overrides: tuple[str, ...]) -> None:
    """Go on from a checkpoint of RUN as a run of its own, with KEY=VALUE laid over its config.

    \b
    Examples:
      samestep branch first --step 8000 --run cooled schedule.name=wsd schedule.decay=500 steps=8500
      samestep branch first --step 8000 --run other-rows seed=1
      samestep branch first --step 8000 --run cooled --later schedule=linear && samestep submit runs/cooled --run cooled
    """
    from samestep.commands import branch as command

    code, said = command.branch(run, step, name, processes, later, overrides)
    if said:
        click.echo(said, err=True)
    sys.exit(code)


@click.command()
@click.argument("run")
@click.option(
    "--share",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="How large a part of the run's stretches is drawn; by default 0.05, and at least one.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the draw; by default one that nobody can know beforehand.")
@click.option(
    "--stretch", "stretches", multiple=True, metavar="FIRST-LAST", help="These steps instead, between kept checkpoints."
)
@click.option("--check", "against", type=click.Path(path_type=Path), metavar="FILE", help="Compare RUN with a proof instead.")
@click.option("--again", is_flag=True, help="With --check: train the stretches of the proof again here, too.")
def prove(
    run: str, share: float | None, seed: int | None, stretches: tuple[str, ...], against: Path | None, again: bool
) -> None:
    """Train stretches of RUN again on whatever is here, compare each bit with what it recorded, and write RUN.proof.json.

    A stretch lies between two kept checkpoints; checkpoint.milestones keeps more of them.

    \b
    Examples:
      samestep prove first                                a twentieth of it, drawn; says what that leaves to chance
      samestep prove first --share 0.2 --seed 7
      samestep prove first --stretch 200-400
      samestep prove --check first.proof.json first       exit code 1: it is not that run, 2: no answer
    """
    from samestep.commands.find_run import recorded
    from samestep.errors import UsageError

    asked = {"--share": share is not None, "--seed": seed is not None, "--stretch": bool(stretches)}
    given = [name for name, is_given in asked.items() if is_given]
    if against is not None and given:
        raise UsageError(f"{given[0]}: found beside --check, which says what was trained; leave one of the two out")
    if stretches and given != ["--stretch"]:
        raise UsageError(f"{given[0]}: found beside --stretch, by which nothing is drawn; leave one of the two out")
    if again and against is None:
        raise UsageError("--again: found without --check; write --check FILE, whose stretches it trains")
    folder, config = recorded(run)
    from samestep.commands import prove as command

    if against is not None:
        command.check(against, folder, config, again)
    else:
        command.prove(folder, config, 0.05 if share is None else share, seed, stretches)


def add_comparing(cli: click.Group) -> None:
    for command in (verify, pin, diff, replay, branch, prove):
        cli.add_command(command)
