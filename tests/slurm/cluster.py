"""A real SLURM cluster on one machine: each node has a network, a host name, processes and mounts of its own.

Its ports, sockets, folders and network are its own too: another cluster on the machine, a test's or a real one, goes on.

By hand: `python tests/slurm/cluster.py up FOLDER`, then `export SLURM_CONF=FOLDER/slurm.conf`; `… down FOLDER` ends it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey", "ip", "nsenter", "unshare")
NODES = ("n1", "n2", "n3", "n4")

CONFIG = """
ClusterName=test
SlurmctldHost={host}({prefix}.254)
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdTimeout={slurmd_timeout}
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10
"""


def missing() -> list[str]:
    """What this machine lacks; nothing if a cluster can be started."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking + ([] if os.geteuid() == 0 else ["root"])


class Cluster:
    """Starts in `up`; whatever happens then, `down` leaves no process, namespace, link or file behind."""

    def __init__(self, folder: Path, slurmd_timeout: int = 60) -> None:
        self.folder, self._slurmd_timeout = folder, slurmd_timeout
        self.config = folder / "slurm.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # The name of the bridge; those of the nodes' ends begin with it.
        self._network = (folder / "network").read_text() if (folder / "network").exists() else ""

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def up(self) -> None:
        self.down()
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)
        prefix = self._take_network()
        lines = CONFIG.format(
            host=socket.gethostname(), prefix=prefix, folder=self.folder, slurmd_timeout=self._slurmd_timeout,
            slurmctld_port=_free_port(), slurmd_port=_free_port(),
        ).splitlines()  # fmt: skip
        for number, node in enumerate(NODES, 1):
            address = f"NodeName={node} NodeAddr={prefix}.{number}"
            lines.append(f"{address} CPUs=2 CoresPerSocket=2 RealMemory=16000 Gres=gpu:2 State=UNKNOWN")
        self.config.write_text("\n".join(sorted(lines, key=lambda line: line.startswith("Partition"))) + "\n")
        for number in range(2):  # what SLURM takes for GPUs
            os.mknod(self.folder / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu Count=2 File={self.folder}/gpu[0-1]\n")
        hosts = ["127.0.0.1 localhost", *(f"{prefix}.{number} {node}" for number, node in enumerate(NODES, 1))]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        _run("mungekey", "--create", "--keyfile", str(self.folder / "munge.key"))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        _run("munged", "--force", *(f"--{option}={self.folder}/{name}" for option, name in files.items()))
        _run("slurmctld", "-c", "-f", str(self.config))
        for number, node in enumerate(NODES, 1):
            there = f"{self._network}-{node}"
            _run("ip", "netns", "add", there)
            _run("ip", "link", "add", there, "type", "veth", "peer", "name", "eth0", "netns", there)
            _run("ip", "link", "set", there, "master", self._network, "up")
            _run("ip", "-n", there, "addr", "add", f"{prefix}.{number}/24", "dev", "eth0")
            _run("ip", "-n", there, "link", "set", "eth0", "up")
            _run("ip", "-n", there, "link", "set", "lo", "up")
            self.revive(node)
        self.wait_idle()

    def _take_network(self) -> str:
        """Make the first bridge of a name and addresses that nobody has. Returns the first three numbers of the addresses."""
        taken = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
        for number in range(256):
            name, prefix = f"ss-test{number}", f"10.77.{number}"
            if f" {prefix}." in taken or subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False).returncode:
                continue  # another's, perhaps since this very moment
            self._network = name
            (self.folder / "network").write_text(name)
            _run("ip", "addr", "add", f"{prefix}.254/24", "dev", name)
            _run("ip", "link", "set", name, "up")
            return prefix
        raise RuntimeError("found nothing free among 10.77.0 to 10.77.255")

    def wait_idle(self, seconds: float = 90) -> None:
        """Until every node is there and does nothing."""
        until = time.monotonic() + seconds
        while self.ask("sinfo", "-h", "-r", "-p", "main", "-t", "idle", "-o", "%D").strip() != str(len(NODES)):
            if time.monotonic() > until:
                raise TimeoutError(self.ask("sinfo", "-N", "-l") + self.ask("squeue"))
            time.sleep(0.3)

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def revive(self, node: str) -> None:
        """Start a node that is down."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        inside = (
            f"mount --bind {self.folder}/hosts /etc/hosts; hostname {node}; "
            f"exec slurmd -D -f {self.config} -N {node} >>{self.folder}/slurmd-{node}.out 2>&1"
        )
        isolated = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", inside]
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._network}-{node}", *isolated],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running[node] = process
        (self.folder / f"{node}.pid").write_text(str(process.pid))

    def kill(self, node: str) -> None:
        """A node's slurmd and all its processes die."""
        file = self.folder / f"{node}.pid"
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
            os.kill(self._init(node), signal.SIGKILL)  # its parent ends with it
        if node in self._running:
            self._running.pop(node).wait()
        file.unlink(missing_ok=True)

    def cut(self, node: str) -> None:
        """A node lives, and nobody can reach it."""
        _run("ip", "link", "set", f"{self._network}-{node}", "down")

    def heal(self, node: str) -> None:
        _run("ip", "link", "set", f"{self._network}-{node}", "up")

    def mount_in(self, node: str, *words: str) -> None:
        """Run a command where `node` has its mounts."""
        _run("nsenter", f"--target={self._init(node)}", "--mount", "--pid", *words)

    def _init(self, node: str) -> int:
        """The first process in a node, with whose death all of it dies."""
        parent = (self.folder / f"{node}.pid").read_text()
        return int(subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True, check=False).stdout.split()[0])

    def down(self) -> None:
        for name in ("slurmctld.pid", "munge.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / name).read_text())
                os.kill(pid, signal.SIGTERM)
                for _ in range(100):
                    os.kill(pid, 0)
                    time.sleep(0.1)
        for node in NODES:
            self.kill(node)
            if self._network:
                subprocess.run(["ip", "link", "del", f"{self._network}-{node}"], capture_output=True, check=False)
                subprocess.run(["ip", "netns", "del", f"{self._network}-{node}"], capture_output=True, check=False)
        if self._network:
            subprocess.run(["ip", "link", "del", self._network], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    getattr(Cluster(Path(sys.argv[2])), sys.argv[1])(*sys.argv[3:])
