"""The group of all commands, and what each way to end becomes: its lines, and its exit code."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import click

from samestep.cli.comparing import add_comparing
from samestep.cli.completion import add_completion
from samestep.cli.internal import add_internal
from samestep.cli.mistyped import in_one_line
from samestep.cli.models import add_models
from samestep.cli.starting import add_starting, version
from samestep.cli.watching import add_watching
from samestep.errors import SamestepError, Stopped, UsageError, place_in_user_code
from samestep.run.printed import open_closed_streams, outlive_readers
from samestep.runtime.hash_order import fix_hash_order

_LET_RANK_0_SPEAK_S = 2.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version
def cli() -> None:
    """Train a model so that the run is a pure function of its config.

    \b
    Examples:
      samestep new mine                                         a task and a config to begin with
      samestep launch mine.yaml                                 every device of this machine; `launch` alone: the demo
      samestep sweep mine.yaml grid.yaml                        a run for each combination of values, several at once
      samestep train configs/stdlib.yaml                        one process, here
      bash launch/debug.sh configs/seed.yaml                    one process on the CPU, breakpoints work
      samestep train configs/seed.yaml --run first optimizer.lr=3e-3
      torchrun --standalone --nproc_per_node 2 -m samestep train configs/stdlib.yaml
      samestep check configs/stdlib.yaml                        what would go wrong, in seconds
      samestep verify configs/stdlib.yaml --processes 1,2       are one process and two the same bits?
      samestep pin mine.yaml                                    keep its bits; verify --against says what changed them
      samestep diff RUN_A RUN_B                                 where two runs part
      samestep replay RUN --step 100 --break                    that step again, in a debugger
      samestep branch RUN --step 100 --run NAME clip=1.0        go on from there with other keys, as a run of its own
      samestep prove RUN                                        train parts of it again: is it what its config says?
      samestep submit configs/stdlib.yaml --time=1:00:00        on a SLURM cluster
      samestep status                                           how every run stands
    """


@cli.command()
@click.argument("config")
@click.option("--run", metavar="NAME", help="A new name starts a run, a known one resumes it, a finished one says so.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train(config: str, run: str | None, overrides: tuple[str, ...]) -> None:
    """Train CONFIG, a YAML file, with KEY=VALUE laid over it.

    \b
    Examples:
      samestep train configs/seed.yaml
      samestep train configs/stdlib.yaml --run demo steps=200 track.wandb=off

    \b
    Exit codes: 0 done; 1 failed; 2 what was typed is wrong; 75 stopped on purpose and saved: run the same line again.
    """
    from samestep.commands import train as command

    command.train(config, run, overrides)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("config")
@click.option("--run", metavar="NAME", help="A new name starts a run, a known one goes on with it.")
@click.option(
    "--sweep", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A run for each line or grid point."
)
@click.option(
    "--chain", type=click.IntRange(min=1), default=1, metavar="N", help="N jobs in a row, where requeueing is forbidden."
)
@click.option("--dry-run", is_flag=True, help="Print the script and the line, and queue nothing.")
@click.argument("words", nargs=-1, metavar="[SBATCH OPTION | KEY=VALUE]...", type=click.UNPROCESSED)
def submit(config: str, run: str | None, sweep: Path | None, chain: int, dry_run: bool, words: tuple[str, ...]) -> None:
    """Check CONFIG, keep the code as it is now, and queue the run on SLURM. Any option of sbatch's is passed on.

    \b
    Examples:
      samestep submit configs/gpt2-124m.yaml --nodes=2 --gpus-per-node=8 --time=8:00:00
      samestep submit mine.yaml --time=1:00:00 --cpus-per-task=4 --partition=short optimizer.lr=3e-3
      samestep submit mine.yaml --time=1:00:00 --sweep grid.yaml
      samestep submit mine.yaml --time=1:00:00 --dry-run
    """
    from samestep.slurm import submit as command

    click.echo(command.submit(config, words, run, sweep, chain, dry_run))


for add in (add_starting, add_models, add_comparing, add_watching, add_internal):
    add(cli)
add_completion(cli)


def main() -> None:
    """Run a command line, and turn each error into its lines and its exit code."""
    fix_hash_order()  # again, for a script that calls samestep.main
    open_closed_streams()
    if sys.argv[1:2] in (["train"], ["launch"], ["sweep"], ["launcher"]):
        outlive_readers()
    code = 0
    try:
        cli.main(standalone_mode=False)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except UsageError as error:
        code = _refuse(error)
    except SamestepError as error:
        code = error.exit_code
        if str(error) and (code == 1 or _speaks()):
            click.echo(f"samestep: {error}", err=True)
    except BrokenPipeError:  # `samestep status | head -1`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except click.ClickException as error:
        code = _refuse(in_one_line(error))
    except (click.Abort, KeyboardInterrupt):
        code = 1
        click.echo("samestep: stopped at once", err=True)
        os._exit(code)  # not even a save that is under way is waited for: what it had written so far is no checkpoint
    except Exception as error:  # in what a command has read, or in the task's own code
        code = 1
        click.echo(f"samestep: {type(error).__name__}: {error}{place_in_user_code(error)}", err=True)
    _leave(code)


def _refuse(error: UsageError) -> int:
    """Say what was wrong with the words, a line for each mistake; one of several ranks does. Returns the exit code."""
    from samestep.runtime import tell_launcher

    tell_launcher(str(error))
    if _speaks():
        for line in error.lines:
            click.echo(f"samestep: {line}", err=True)
    else:
        _let_rank_0_speak()
    return error.exit_code


def _leave(code: int) -> None:
    """End the process; one of several ranks ends without the interpreter's teardown.

    A thread of gloo may let go of its last tensor only then: it wants Python's lock, and C++ aborts the process.
    """
    from samestep.runtime import read_runtime

    try:
        runtime = read_runtime()
    except UsageError:  # said already, or no matter to a command that starts no rank
        sys.exit(code)
    if code == Stopped.exit_code and runtime.verdict is not None:
        code = 0  # a job's script reads state.json; torchrun would print a page about it
    if runtime.world_size > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _let_rank_0_speak() -> None:
    """Wait to be ended: a launcher ends all ranks once the first of them has ended, and that should be the one that speaks."""
    signal.signal(signal.SIGTERM, lambda number, frame: _leave(UsageError.exit_code))
    time.sleep(_LET_RANK_0_SPEAK_S)


def _speaks() -> bool:
    """What is the same on every rank is said by one."""
    from samestep.runtime import read_runtime

    with contextlib.suppress(UsageError):
        return read_runtime().is_main
    return True
