"""The commands around a model of one's own: a first one, and what has become of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from samestep.commands.new import LIKES


@click.command()
@click.argument("path")
@click.option("--like", type=click.Choice(LIKES), default=LIKES[0], show_default=True, help="What kind of task.")
def new(path: str, like: str) -> None:
    """Write PATH.py and PATH.yaml: a commented task and its config, which train at once.

    All but points train on the files of a folder, `data` by default, and on made-up rows where it has none.

    \b
    Examples:
      samestep new mine && samestep train mine.yaml
      samestep new mine --like images && samestep train mine.yaml with.folder=photos with.classes=2
    """
    from samestep.commands import new as command

    click.echo(command.new(path, like))


@click.command()
@click.argument("run")
@click.option("--data", "split", metavar="SPLIT", default="eval", show_default=True, help="What data() is asked for.")
@click.option("--step", type=click.IntRange(min=1), help="Of the checkpoint; by default the newest.")
@click.option("--best", is_flag=True, help="The best by the run's checkpoint.best.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def evaluate(run: str, split: str, step: int | None, best: bool, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Measure RUN's metrics on a split of its task's data, as an evaluation in the run would, to the bit.

    \b
    Examples:
      samestep evaluate first
      samestep evaluate first --best
      samestep evaluate first --data train evaluate.batches=20
      samestep evaluate first --data test --step 400 --json
    """
    from samestep.commands.find_run import recorded

    folder, config = recorded(run, overrides)
    from samestep.commands import evaluate as command

    found = command.evaluate(folder, config, split, step, best)
    shown = "  ".join(f"{name} {value:.6g}" for name, value in found.items())
    click.echo(json.dumps(found) if as_json else shown)


@click.command()
@click.argument("run")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--step", type=click.IntRange(min=1), help="Of the checkpoint; by default the newest.")
@click.option("--best", is_flag=True, help="The best by the run's checkpoint.best.")
def export(run: str, path: Path | None, step: int | None, best: bool) -> None:
    """Write RUN's weights to PATH: a file of safetensors, or for a model of transformers a folder that from_pretrained reads.

    Without PATH the file is RUN.safetensors, and the folder is called RUN. The newest checkpoint is taken.

    \b
    Examples:
      samestep export first                       first.safetensors
      samestep export first --best best.safetensors
      samestep export tuned my-model/
    """
    from samestep.commands.find_run import recorded, refuse_existing

    if path is not None:
        refuse_existing(path)
    folder, config = recorded(run)
    from samestep.commands import export as command

    click.echo(command.export(folder, config, path, step, best))


@click.command()
@click.argument("config")
@click.option("--processes", metavar="1,2,4", help="The world sizes asked about; by default those that fit.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="So many machines: by default each like this one.")
@click.option("--fit", is_flag=True, help="Also find the largest micro_batch_size for which the memory suffices.")
@click.option("--bits", is_flag=True, help="Also run a few steps at several world sizes, and compare the weights.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each thing looked at.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def check(
    config: str,
    processes: str | None,
    nodes: int | None,
    fit: bool,
    bits: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Find in seconds what would go wrong with CONFIG: a micro-batch is tried; memory, disk, devices, trackers looked at.

    Exits with 2 if there is an error, which says what to write.

    \b
    Examples:
      samestep check mine.yaml
      samestep check mine.yaml --processes 8,16 --bits
      samestep check mine.yaml --nodes 4 --fit
    """
    from samestep.commands import check as command

    lines = command.check(config, processes, nodes, fit, bits, overrides)
    for line in lines:
        click.echo(json.dumps(vars(line)) if as_json else str(line))
    sys.exit(2 if any(line.level == "error" for line in lines) else 0)


def add_models(cli: click.Group) -> None:
    for command in (new, check, evaluate, export):
        cli.add_command(command)
