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
from samestep.errors import UsageError
from samestep.run.folder import RunFolder, write_atomically
from samestep.run.names import default_name
from samestep.runtime import read_runtime
from samestep.runtime.shipped import is_checkout, shipped
from samestep.slurm.controller import code_root, find_slurm
from samestep.slurm.sweep import points
from samestep.task.loading import load_task

_FLAGS = {
    "--contiguous", "--exclusive", "--hold", "-H", "--no-requeue", "--requeue", "--overcommit", "-O", "--oversubscribe", "-s",
    "--spread-job", "--use-min-nodes", "--verbose", "-v", "--quiet", "-Q", "--reboot", "--no-kill", "-k", "--get-user-env",
}  # fmt: skip
_KEPT = {".py", ".yaml", ".yml", ".json", ".toml", ".txt", ".sh"}
_LARGEST_BYTES = 1_000_000
_MOST_FILES = 5_000


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
    jobs = _queued(folder, kept, line, export, chain)
    again = shlex.join(["samestep", "status", name, "--follow"])
    return f"job {', then '.join(jobs)} queued\nrun folder {folder.path}\nnext: {again}"


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
    mistakes += _unfit(config_path, runs, sweep)
    if mistakes:
        raise UsageError(*mistakes)
    room(config.runs)
    if not load_task(config.task, config.fields).overrides("optimizer"):
        from samestep.optimizer import checked_optimizer  # it imports torch, as the task has by now

        for key, wanted in config.optimizers.items():
            checked_optimizer(wanted, key)


def _queued(folder: RunFolder, kept: Path, line: list[str], export: dict[str, str], chain: int) -> list[str]:
    """The ids of the jobs, each after the one before; what was laid out goes again where one is refused."""
    is_new = not folder.path.exists()
    try:
        folder.create()
        if not kept.exists():  # a run that goes on keeps the code it began with
            keep_code(kept)
        jobs: list[str] = []
        for _ in range(chain):
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
            job, refused = _run(["sbatch", "--parsable", *after, *line[1:]], export)
            if refused:
                raise UsageError(f"sbatch: {refused}")
            jobs.append(job)
        write_atomically(folder.path / "submitted.json", json.dumps({"jobs": jobs, "line": line}, indent=1) + "\n")
    except (OSError, UsageError) as error:
        if is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(
                f"runs: {folder.path} can't be written ({error.strerror}); make room, or write runs=FOLDER"
            ) from None
        raise
    return jobs


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


def _unfit(config_path: str, runs: list[tuple[str, ...]], sweep: Path | None) -> list[str]:
    """A line for each mistake that only some runs of a sweep would have."""
    found: dict[str, int] = {}
    for number, overrides in enumerate(runs):
        try:
            load_config(config_path, overrides)
        except UsageError as error:
            for line in error.lines:
                found.setdefault(line, number)
    return [f"{sweep}, run {number}: {line}" for line, number in found.items()]


def _path(kept: Path) -> str:
    return os.pathsep.join([str(kept / ".samestep"), *filter(None, [os.environ.get("PYTHONPATH")])])


def _run(line: list[str], export: dict[str, str]) -> tuple[str, str]:
    """What a command printed, and why it refused."""
    done = subprocess.run(line, env={**os.environ, **export}, capture_output=True, text=True, timeout=120, check=False)
    said = " ".join(done.stderr.split())
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0], ""
    return "", said.replace("sbatch: error: ", "").removeprefix("allocation failure: ") or f"exit code {done.returncode}"


def keep_code(folder: Path) -> None:
    """Copy the small text files of the working folder, and samestep itself, to where no later edit reaches them."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(code_root(), aside / ".samestep" / "samestep", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped() / "configs", aside / ".samestep/samestep/shipped/configs", dirs_exist_ok=True)
    here = Path.cwd()
    for number, path in enumerate(_files(here)):
        if number >= _MOST_FILES:
            raise UsageError(
                f"{here}: found more than {_MOST_FILES} source files to keep; submit from the project's own folder"
            )
        target = aside / path.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    aside.rename(folder)


def _files(here: Path) -> list[Path]:
    """Sources under a folder: what git knows and does not ignore, or else everything outside hidden folders and runs."""
    listed = subprocess.run(
        ["git", "-C", str(here), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [here / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        found = []
        for top, folders, names in os.walk(here):
            # A folder of its own that holds runs, or a virtual environment, is not this project's source.
            folders[:] = [
                name for name in folders if name[0] != "." and name != "__pycache__" and not _is_foreign(Path(top) / name)
            ]
            found += [Path(top) / name for name in names]
    return [path for path in found if path.suffix in _KEPT and path.is_file() and path.stat().st_size <= _LARGEST_BYTES]


def _is_foreign(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or any(folder.glob("*/state.json")) or any(folder.glob("*/submitted.json"))
