"""One process's place among the ranks, and what torch and its backends read of the environment."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from samestep.errors import UsageError

_PR_SET_PDEATHSIG = 1
_OF_A_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_OF_ANOTHER_LAUNCHERS = {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}  # which Accelerate asks for
_MOST_CPU_PROCESSES = 8
_REAPERS = {"systemd", "slurmstepd"}  # they adopt the children of the dead, as process 1 does
# torchrun sets the first to 1 in each rank's environment (local_elastic_agent.py). In ProcessGroupNCCL.hpp 0 is "NoHandling": a
# dead peer's error, and a time-out, end no process. The thread that would for a heartbeat is off, and a CUDA error is for the
# main thread to tell. All three are read when the group is made.
_NO_NCCL_WATCHDOG = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}
_LAUNCHERS = ("python", "torchrun", "accelerate")
_LAUNCH_WORDS = {"launch", "launch.py", "accelerate-launch", "accelerate.commands.launch"}


@dataclass(frozen=True)
class Runtime:
    """One process's place among the others, as its launcher set it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launched: bool  # by torchrun or accelerate launch, which end the ranks that outlive a failed one
    host: str
    job: str | None  # the SLURM job, as JOBID or ARRAYID_TASK
    ends_at: float | None = None  # when the job's time is over, in Unix seconds
    store: tuple[str, int] | None = None  # the launcher's, which outlives any rank
    verdict: Path | None = None  # the file that appears when the job has lost a node
    left_out: tuple[str, ...] = ()  # nodes that this job does without
    array: str | None = None  # the SLURM job array, whose tasks are one sweep

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_runtime() -> Runtime:
    """Read what the launcher set. A process without a launcher is a world of its own.

    Raises UsageError for a variable that no launcher sets so.
    """
    env = os.environ
    world_size = _number("WORLD_SIZE", 1, least=1)
    array, index = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return Runtime(
        rank=_number("RANK", 0, most=world_size - 1),
        world_size=world_size,
        local_rank=_number("LOCAL_RANK", 0, most=world_size - 1),
        local_world_size=_number("LOCAL_WORLD_SIZE", world_size, least=1, most=world_size),
        launched="TORCHELASTIC_RUN_ID" in env,
        host=socket.gethostname(),
        job=f"{array}_{index}" if array and index else env.get("SLURM_JOB_ID"),
        ends_at=float(env["SLURM_JOB_END_TIME"]) if env.get("SLURM_JOB_END_TIME", "").isdigit() else None,
        verdict=Path(env["SAMESTEP_VERDICT"]) if "SAMESTEP_VERDICT" in env else None,
        left_out=tuple(env.get("SAMESTEP_LEFT_OUT", "").split()),
        array=array,
        store=(env.get("MASTER_ADDR", "127.0.0.1"), int(env["MASTER_PORT"])) if env.get("MASTER_PORT", "").isdigit() else None,
    )


def has_rank() -> bool:
    """Whether a launcher gave this process a place of its own, as Accelerate sees it: without one it is no process group."""
    return "LOCAL_RANK" in os.environ


def _number(name: str, without: int, least: int = 0, most: float = math.inf) -> int:
    text = os.environ.get(name)
    if text is None:
        return without
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        upper = "" if most == math.inf else f" to {most:g}"
        raise UsageError(
            f"{name}: found {text!r} in the environment, where a launcher sets a number from {least}{upper}; "
            f"write unset {name}, or start with torchrun, accelerate launch or samestep launch"
        )
    return int(text)


def tell_launcher(paragraph: str) -> None:
    """Leave a failed rank's last words where torchrun wants them: it prints those of the first to fail at its page's end."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if name:
        message = {"message": paragraph, "extraInfo": {"py_callstack": paragraph, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(name).write_text(json.dumps({"message": message}))


def refuse_another_world_size(runtime: Runtime, meant: int | None) -> None:
    """Raise UsageError unless as many processes run as were meant, by the config or by the launcher's command line.

    `accelerate launch --cpu --num_processes 2` starts one process in silence; its command line is the only trace.
    """
    if meant is not None and meant != runtime.world_size:
        raise UsageError(
            f"processes: {meant} were meant and {runtime.world_size} started; write processes={runtime.world_size}, "
            f"or start {meant} (samestep launch --processes {meant} does)"
        )
    if runtime.world_size > 1 and os.environ.get("MASTER_PORT") == "0":
        raise UsageError("torchrun: found --master_port 0, where the ranks would never meet; write --standalone instead")
    asked = _processes_asked_of_accelerate() if runtime.world_size == 1 else None
    if asked is not None and asked > 1:
        raise UsageError(
            f"accelerate launch: --num_processes {asked} was asked for and one process started; without a GPU write "
            f"accelerate launch --multi_gpu --num_processes {asked} …, or samestep launch --processes {asked}"
        )


def _processes_asked_of_accelerate() -> int | None:
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    launch = next((place for place, word in enumerate(words[:4]) if Path(word).name in _LAUNCH_WORDS), None)
    if launch is None or not any("accelerate" in word for word in words[: launch + 1]):
        return None
    for position, word in enumerate(words[launch + 1 :], launch + 1):
        if word in ("-m", "--module"):
            break  # what follows belongs to the program that is launched
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            number = value or (words[position + 1] if position + 1 < len(words) else "")
            return int(number) if number.isdigit() else None
    return None


def end_with_launcher() -> None:
    """Let this rank end when its launcher does, also if that is dead already; it would wait for a store that is gone."""
    end_with_parent()
    parent = psutil.Process().parent()
    with contextlib.suppress(psutil.Error):
        if parent is not None and (parent.pid == 1 or parent.name() in _REAPERS):
            words = " ".join(parent.cmdline())
            if not any(launcher in words for launcher in _LAUNCHERS):  # in a container, process 1 may be the launcher
                os._exit(1)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent dies: torch starts ranks in sessions of their own."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died between the two lines above
        os._exit(1)


def leave_the_others() -> None:
    """Make this process a world of its own, whatever launcher started it."""
    for name in list(os.environ):
        if name in _OF_A_RANK | _OF_ANOTHER_LAUNCHERS or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


def prepare_environment(runtime: Runtime, threads: int, watched: bool = False) -> None:
    """Set what torch and its backends read once, before either is imported.

    Args:
        watched: by samestep's own watchdog, beside which NCCL's would end ranks that have something to save.
    """
    if watched and runtime.world_size > 1:
        os.environ.update(_NO_NCCL_WATCHDOG)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo warns of host names that nothing here looks up
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS, read when CUDA starts
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # accumulation is derived from the batch sizes
    if runtime.world_size > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = network_interface(os.environ.get("MASTER_ADDR", "127.0.0.1"))
        if interface:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
            if interface != "lo":
                os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def network_interface(address: str) -> str | None:
    """The name of the interface that reaches an address: a host's own name may mean 127.0.1.1, or one of several cards.

    The main node reaches itself through `lo` even when the others do not, so its own address is looked up by itself.
    """
    interfaces = psutil.net_if_addrs()
    by_address = {entry.address: name for name, entries in interfaces.items() for entry in entries}
    try:
        target = socket.gethostbyname(address)
    except OSError:
        return None  # the backend says better what it could not reach
    if target in by_address:
        return by_address[target]
    if target.startswith("127."):
        return by_address.get("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))  # a datagram socket sends nothing here; it only picks a route
        except OSError:
            return None
        return by_address.get(probe.getsockname()[0])


def gpu_names() -> list[str]:
    """The GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES has them, without importing torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [entry.strip() for entry in listed.split(",") if entry.strip() and entry.strip() != "-1"]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in answer.stdout.splitlines()))]


def visible_gpus() -> int:
    """How many GPUs a process started here would see."""
    return len(gpu_names())


def processes_here(device: str, most: int) -> int:
    """How many processes to start on this machine: one per GPU, or one per CPU core, at most `most` and (CPUs) eight."""
    gpus = visible_gpus() if device == "auto" else 0
    return max(1, min(gpus or min(len(os.sched_getaffinity(0)), _MOST_CPU_PROCESSES), most))
