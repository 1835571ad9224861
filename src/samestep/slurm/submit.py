"""`samestep submit`: everything that can be checked is checked, the code is kept as it is now, and the job is queued."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from samestep.config import Config, load_config
from samestep.config.preflight import room
from samestep.config.sweep import configs, points
from samestep.errors import UsageError
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.names import default_name
from samestep.run.sensitive import left_out
from samestep.run.store import store_of
from samestep.runtime import read_runtime
from samestep.runtime.shipped import is_checkout, shipped
from samestep.slurm.controller import find_slurm
from samestep.slurm.kept_code import keep_code
from samestep.task.loading import load_task

_FLAGS = {
    "--contiguous", "--exclusive", "--hold", "-H", "--no-requeue", "--requeue", "--overcommit", "-O", "--oversubscribe", "-s",
    "--spread-job", "--use-min-nodes", "--verbose", "-v", "--quiet", "-Q", "--reboot", "--no-kill", "-k", "--get-user-env",
}  # fmt: skip
_WITHOUT_SECRET = {"ALL", "NONE", "NIL"}


def submit(config_path: str, words: tuple[str, ...], run: str | None, sweep: Path | None, chain: int, dry_run: bool) -> str:
    """Queue a run, and say its job, its folder and what to type next.

    Args:
        words: sbatch's own options and key=value, in any order.
        chain: how many jobs, each after the one before, for a partition that forbids requeueing.

    Raises:
        UsageError: for every mistake that can be found now; nothing is left behind.
    """
    find_slurm()
    options, overrides = split(words)
    config, _ = load_config(config_path, overrides)
    batch = Path("slurm") / ("sweep.sbatch" if sweep else "train.sbatch")
    laid_out = all((Path.cwd() / file).is_file() for file in (batch, "slurm/job.sh", "launch/setup.sh"))  # by samestep init
    root = Path.cwd() if laid_out else shipped()
    script = root / batch
    name = default_name(config_path, read_runtime().job) if run is None else run
    folder = RunFolder.named(config.runs, name)
    runs = [(*point, *overrides) for point in points(sweep)] if sweep else []
    _refuse_mistakes(config, config_path, options, runs, sweep)
    if sweep is not None and not _given(options, "--array", "-a"):
        options.append(f"--array=0-{len(runs) - 1}")
    kept = folder.path.resolve() / "code"
    if not _given(options, "--output", "-o"):
        options.append(f"--output={folder.path.resolve()}/job-%j.txt")
    inner = [config_path, *(["--sweep", str(sweep)] if sweep else ["--run", name]), *overrides]
    export = {"SAMESTEP_ROOT": str(root), "SAMESTEP_CODE": str(kept), "PYTHONPATH": _path(kept)}
    if not is_checkout(root):
        export["PYTHON"] = sys.executable
    line = ["sbatch", *options, str(script), *inner]
    refused = _run([line[0], "--test-only", *line[1:]], export)[1]
    if refused:
        raise UsageError(f"sbatch: {refused}")
    if dry_run:
        shown = [f"{key}={shlex.quote(value)}" for key, value in export.items()]
        return f"{' '.join(shown)} \\\n  {shlex.join(line)}\n\n# {script}\n{script.read_text()}"
    jobs, secrets = _queued(folder, kept, line, export, chain)
    again = shlex.join(["samestep", "status", name, "--follow"])
    notes = f"{left_out(secrets, 'the kept code')}\n" if secrets else ""
    return f"job {', then '.join(jobs)} queued\nrun folder {folder.path}\n{notes}next: {again}"


def _refuse_mistakes(
    config: Config, config_path: str, options: list[str], runs: list[tuple[str, ...]], sweep: Path | None
) -> None:
    """Raise UsageError for all that can be found before the queue."""
    mistakes = []
    if not _given(options, "--time", "-t") and not os.environ.get("SBATCH_TIMELIMIT"):
        mistakes.append(
            "--time: missing; write --time=HH:MM:SS, by which the run stops itself, saves and is requeued (docs/slurm.md)"
        )
    mistakes += _too_many(config, options)
    if sweep is not None:
        mistakes += configs(config_path, runs, sweep)[1]
    if mistakes:
        raise UsageError(*mistakes)
    room(config.runs)
    if config.checkpoint.address:
        store_of(config.checkpoint.address, "submitted", config.runs)
    if not load_task(config.task, config.fields).overrides("optimizer"):
        from samestep.optimizer import checked_optimizer  # it imports torch, as the task has by now

        for key, wanted in config.optimizers.items():
            checked_optimizer(wanted, key)


def _queued(
    folder: RunFolder, kept: Path, line: list[str], export: dict[str, str], chain: int
) -> tuple[list[str], dict[str, str]]:
    """The ids of the jobs, each after the one before, and what was left out of the code; all goes where one is refused."""
    is_new, secrets = not folder.path.exists(), dict[str, str]()
    try:
        folder.create()
        if not kept.exists():  # a run that goes on keeps the code it began with
            secrets = keep_code(kept)
        jobs: list[str] = []
        for _ in range(chain):
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
            job, refused = _run(["sbatch", "--parsable", *after, *line[1:]], export)
            if refused:
                raise UsageError(f"sbatch: {refused}")
            jobs.append(job)
        write_atomically(
            folder.path / "submitted.json", json.dumps({"jobs": jobs, "line": _without_values(line)}, indent=1) + "\n"
        )
    except (OSError, UsageError) as error:
        if is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(
                f"runs: {folder.path} can't be written ({error.strerror}); make room, or write runs=FOLDER"
            ) from None
        raise
    return jobs, secrets


def _without_values(line: list[str]) -> list[str]:
    """The line without what variables are set to in it: a key of somebody's, maybe."""
    shown = list(line)
    for place, word in enumerate(line):
        if word == "--export" and place + 1 < len(line):
            shown[place + 1] = _names(line[place + 1])
        elif word.startswith("--export="):
            shown[place] = f"--export={_names(word.removeprefix('--export='))}"
    return shown


def _names(variables: str) -> str:
    """KEY=… for each KEY=VALUE. A value may have a comma in it: what is no variable's name is not shown either."""
    shown = []
    for part in variables.split(","):
        name, sign, _ = part.partition("=")
        is_name = name in _WITHOUT_SECRET or name in os.environ or (sign and name.isidentifier())
        shown.append((name if is_name else "…") + ("=…" if sign and is_name else ""))
    return ",".join(shown)


def split(words: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """sbatch's options and their values on the one side, key=value on the other. UsageError for a word that is neither."""
    options: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        if takes_value:
            options.append(word)
            takes_value = False
        elif word.startswith("-"):
            options.append(word)
            is_short_with_value = not word.startswith("--") and len(word) > 2
            takes_value = "=" not in word and word not in _FLAGS and not is_short_with_value
        elif "=" in word:
            overrides.append(word)
        else:
            raise UsageError(f"found {word!r}; write key=value, or an option of sbatch's as --option=value")
    return options, tuple(overrides)


def _given(options: list[str], long: str, short: str) -> bool:
    return any(word.partition("=")[0] == long or (word.startswith(short) and not word.startswith("--")) for word in options)


def _value(options: list[str], long: str, short: str | None = None) -> int | None:
    for place, word in enumerate(options):
        name, _, value = word.partition("=")
        if name == long or (short is not None and name == short):
            value = value or (options[place + 1] if place + 1 < len(options) else "")
        elif short is not None and word.startswith(short) and not word.startswith("--"):
            value = word[2:]
        else:
            continue
        last = value.rpartition(":")[2]
        return int(last) if last.isdigit() else None
    return None


def _too_many(config: Config, options: list[str]) -> list[str]:
    """One line if more processes are asked for than a step has leaves."""
    nodes = _value(options, "--nodes", "-N") or 1
    tasks = _value(options, "--ntasks-per-node") or 1
    gpus = _value(options, "--gpus-per-node") or _value(options, "--gres") or (_value(options, "--gpus-per-task") or 0) * tasks
    total = _value(options, "--gpus", "-G") or nodes * (gpus or (_value(options, "--cpus-per-task", "-c") or 1) * tasks)
    if total <= config.num_leaves:
        return []
    return [
        f"--nodes: found {total} processes in all, and a step has {config.num_leaves} leaves to share; ask for "
        f"{config.num_leaves} or fewer, or write a smaller micro_batch_size"
    ]


def _path(kept: Path) -> str:
    return os.pathsep.join([str(kept / ".samestep"), *filter(None, [os.environ.get("PYTHONPATH")])])


def _run(line: list[str], export: dict[str, str]) -> tuple[str, str]:
    """What a command printed, and why it refused."""
    done = subprocess.run(line, env={**os.environ, **export}, capture_output=True, text=True, timeout=120, check=False)
    said = " ".join(done.stderr.split())
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0], ""
    return "", said.replace("sbatch: error: ", "").removeprefix("allocation failure: ") or f"exit code {done.returncode}"
