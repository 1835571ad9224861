"""The SLURM job around this process: its nodes, its sizes, its end, and what may be asked of the controller."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from samestep.errors import UsageError

_CONTROLLER_PATIENCE_S = 30.0
_SLURMD_PORT = 6818
_CONNECT_S = 3.0  # with the second try of a lost packet
_DYING_S = 1.0
# What the job's own options would make of a step that is to have one launcher a node and all that the job has there.
_PER_TASK = re.compile(
    r"SLURM_(NTASKS|NPROCS|TASKS_PER_NODE|NTASKS_PER_\w+|CPUS_PER_TASK|CPUS_PER_GPU|TRES_PER_TASK|GPUS_PER_TASK|GPU_BIND|CPU_BIND\w*|"
    r"NNODES|NODELIST|JOB_NUM_NODES|DISTRIBUTION|THREADS_PER_CORE|EXACT|EXPORT_ENV)$"
)

# A signal for the ranks must not end their launcher; `before` is the site's own, a module system's lines for example. A node
# without the Python says so over the line that Python would have opened: srun is silent until all nodes have ended.
_ON_NODE = (
    "trap '' USR1; "
    'python=$1 before=$2 plan=$3 address=$4 port=$5 lacking=$6; [[ ! -f $before ]] || . "$before"; '
    'if [[ ! -x $python ]]; then exec 3<>"/dev/tcp/$address/$port"; '
    'printf \'%s\\n{"node":"%s","step":"%s"}\\n{"refused":"%s: %s","ended":2}\\n\' '
    '"$SAMESTEP_TOKEN" "$SLURMD_NODENAME" "$SLURM_STEP_ID" "$SLURMD_NODENAME" "$lacking" >&3; exit 2; fi; '
    'exec "$python" -m samestep node "$plan"'
)


@dataclass(frozen=True)
class Job:
    """A job as its batch script sees it."""

    id: str
    nodes: tuple[str, ...]
    node: str  # the batch script's own
    processes: dict[str, int]  # of a node without GPUs
    array_index: int | None
    gpus: dict[str, int]  # of a node, where they were asked for by the task; else a step gets all that the job has there

    @property
    def ends_at(self) -> float | None:
        """When its time is over, in Unix seconds; None without a limit. 22.05 has it in no variable."""
        found = os.environ.get("SLURM_JOB_END_TIME", "")
        if found.isdigit():
            return float(found)
        with contextlib.suppress(ValueError):
            return time.mktime(time.strptime(self.shown("EndTime"), "%Y-%m-%dT%H:%M:%S"))
        return None

    def shown(self, field: str) -> str:
        """A field of the controller's record of the job; empty when it doesn't answer."""
        found = re.search(rf"(?:^|\s){field}=(\S*)", ask("scontrol", "show", "job", self.id))
        return found[1] if found else ""

    def requeue(self) -> str:
        """Put the job back into the queue, which ends this process too. Returns why that was refused."""
        return ask("scontrol", "requeue", self.id)

    def step(self, nodes: list[str], words: list[str], token: str) -> subprocess.Popen[bytes]:
        """Run `samestep node` once on each of `nodes`, with everything there that is the job's.

        Args:
            words: the Python, the site's own file, the plan, the address and port of the job's end of the line, and what to
                say of a node that lacks the Python.
            token: what is said there first. It travels in the environment: all who are on a node may read arguments.
        """
        env = {key: value for key, value in os.environ.items() if not _PER_TASK.match(key)}
        env["SAMESTEP_TOKEN"] = token
        if self.ends_at is not None:
            env["SLURM_JOB_END_TIME"] = str(int(self.ends_at))
        options = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
        options += ["--overlap", "--whole", "--no-kill", "--kill-on-bad-exit=0", "--cpu-bind=none", "--quiet"]
        if self.gpus:  # one launcher would get one task's; srun takes one number for all nodes
            options.append(f"--gpus-per-node={min(self.gpus[node] for node in nodes)}")
        return subprocess.Popen(["srun", *options, "bash", "-c", _ON_NODE, "samestep", *words], env=env)

    def cancel_step(self, step: str) -> None:
        ask("scancel", "--signal=KILL", f"{os.environ['SLURM_JOB_ID']}.{step}")

    def slurmds(self, nodes: list[str]) -> dict[str, tuple[str, int]]:
        """Where the slurmd of each node listens. The controller is asked, which may take its time."""
        port = re.search(r"SlurmdPort\s*=\s*(\d+)", ask("scontrol", "show", "config"))
        found = {}
        for line in ask("scontrol", "--oneliner", "show", "node", ",".join(nodes)).splitlines():
            of = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if of.get("NodeName") in nodes:
                own = of.get("Port") or (port[1] if port else _SLURMD_PORT)
                found[of["NodeName"]] = of.get("NodeAddr", of["NodeName"]), int(own)
        return found

    def address(self, node: str, nodes: list[str]) -> str:
        """A node's address as the others of `nodes` reach it; this node's own name may mean 127.0.1.1."""
        if node != self.node:
            return _address(node)
        for other in nodes:
            if other != node:
                with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.connect((_address(other), 9))  # sends nothing: it only picks a route
                    return str(probe.getsockname()[0])
        return "127.0.0.1"


def dead(nodes: list[str], slurmds: dict[str, tuple[str, int]]) -> set[str]:
    """Those of `nodes` where nothing answers, or whose slurmd is gone; in at most four seconds, without the controller.

    srun ends a whole step when a node is dead as it begins, and the controller takes minutes to notice.
    """
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        lives = pool.map(lambda node: node not in slurmds or _listens(slurmds[node]), nodes)
        return {node for node, is_alive in zip(nodes, lives, strict=True) if not is_alive}


def _listens(place: tuple[str, int]) -> bool:
    """Whether a slurmd is there: it takes a connection and waits for words. That of a node in its last moment closes it."""
    with contextlib.suppress(OSError), socket.create_connection(place, timeout=_CONNECT_S) as probe:
        return not select.select([probe], [], [], _DYING_S)[0]
    return False


def _address(node: str) -> str:
    found = re.search(r"NodeAddr=(\S+)", ask("scontrol", "show", "node", node))
    return socket.gethostbyname(found[1] if found else node)


def ask(*words: str) -> str:
    """What a command of SLURM's says, on both streams; empty when it can't be asked."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_CONTROLLER_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


@dataclass(frozen=True)
class JobState:
    """A job as the controller, or its accounting, knows it."""

    id: str
    state: str
    reason: str
    nodes: str

    @property
    def is_alive(self) -> bool:
        return self.state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "STOPPED")


def jobs_now(ids: list[str]) -> dict[str, JobState]:
    """What squeue, and for ended jobs sacct, say of these jobs; empty where there is no SLURM."""
    if not ids or shutil.which("squeue") is None:
        return {}
    found = {}
    for line in ask("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N").splitlines():
        parts = line.split("|")
        if len(parts) == 4 and parts[0] in ids:
            found[parts[0]] = JobState(*parts)
    left = [job for job in ids if job not in found]
    if left and shutil.which("sacct") is not None:
        for line in ask("sacct", "-X", "-n", "-P", "-j", ",".join(left), "-o", "JobID,State,Reason,NodeList").splitlines():
            parts = line.split("|")
            if len(parts) == 4 and parts[0] in left:
                found[parts[0]] = JobState(parts[0], parts[1].split()[0], parts[2], parts[3])
    return found


def find_slurm() -> None:
    """Raise UsageError on a machine from which nothing can be submitted."""
    if shutil.which("sbatch") is None:
        raise UsageError("sbatch: found no SLURM on this machine; write samestep launch CONFIG to train here")


def read_job() -> Job:
    """The job whose batch script this process belongs to. Raises UsageError outside of one."""
    env = os.environ
    if "SLURM_JOB_ID" not in env or shutil.which("srun") is None:
        raise UsageError("job: found no SLURM job around this process; write sbatch slurm/train.sbatch CONFIG")
    nodes = tuple(ask("scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]).split())
    tasks = _counts(env.get("SLURM_TASKS_PER_NODE", "1"), len(nodes))
    per_task = int(env.get("SLURM_CPUS_PER_TASK", 1))
    gpus = env.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    array, index = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return Job(
        id=f"{array}_{index}" if array and index else env["SLURM_JOB_ID"],
        nodes=nodes,
        node=env.get("SLURMD_NODENAME") or nodes[0],
        processes={node: number * per_task for node, number in zip(nodes, tasks, strict=True)},
        array_index=int(index) if index else None,
        gpus={node: number * int(gpus) for node, number in zip(nodes, tasks, strict=True)} if gpus.isdigit() else {},
    )


def _counts(text: str, nodes: int) -> list[int]:
    """SLURM's way of writing a number for each node: 2(x3),1."""
    counts: list[int] = []
    for part in text.split(","):
        number, _, times = part.rstrip(")").partition("(x")
        counts += [int(number)] * int(times or 1)
    return (counts + counts[-1:] * nodes)[:nodes]


def this_node() -> tuple[str, str, str]:
    """The node's name, the step's number and the start's token, for a process that srun started; no rank inherits the last."""
    return os.environ["SLURMD_NODENAME"], os.environ["SLURM_STEP_ID"], os.environ.pop("SAMESTEP_TOKEN")


def requeue_this_job() -> None:
    """Put the job around this process back into the queue, which ends this process too, unless the job is over by now."""
    job = os.environ["SLURM_JOB_ID"]
    if "JobState=RUNNING" in ask("scontrol", "show", "job", job):
        ask("scontrol", "requeue", job)


def earlier_ranks() -> list[psutil.Process]:
    """Processes that an earlier start of this job left on this node."""
    job, step = os.environ["SLURM_JOB_ID"], os.environ["SLURM_STEP_ID"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            env = process.environ()
            if env.get("SLURM_JOB_ID") == job and env.get("SLURM_STEP_ID", step) != step and "SAMESTEP_VERDICT" in env:
                found.append(process)
    return found


def code_root() -> Path:
    """Where this samestep's own files are."""
    return Path(__file__).resolve().parents[1]
