"""The same command line works under every launcher, on every number of processes, and gives the same run."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import ROOT, Workplace

UNEVEN = """
import datasets, numpy as np, torch
from samestep import Task

class Uneven(Task):
    fail_on: int = -1
    fail_at: int = -1

    def data(self, split):
        rng = np.random.default_rng(0)
        n = 100 if split == "train" else 30
        return datasets.Dataset.from_dict({
            "x": rng.standard_normal((n, 12, 4), dtype=np.float32), "length": rng.integers(1, 13, n), "row": np.arange(n)})

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))

    def loss(self, model, batch):
        mask = torch.arange(12) < batch["length"][:, None]
        return ((model(batch["x"]).squeeze(-1) - 1).square() * mask).sum(), mask.sum()
"""
CONFIG = """
task: uneven.py:Uneven
global_batch_size: 16
micro_batch_size: 4
epochs: 3
optimizer: {name: adamw, lr: 1e-2}
track: {every: 1, wandb: 'off'}
evaluate: {every: 5}
"""


@pytest.fixture
def uneven(workplace: Workplace) -> Workplace:
    workplace.write("uneven.py", UNEVEN)
    workplace.write("uneven.yaml", CONFIG)
    return workplace


@pytest.mark.parametrize("reduce", ["exact", "fast"])
def test_one_two_and_four_processes_draw_the_same_curve(uneven: Workplace, reduce: str) -> None:
    curves, weights = [], []
    for processes in (1, 2, 4):
        name = f"on-{processes}"
        done = uneven.train("uneven.yaml", "--run", name, f"reduce={reduce}", processes=processes)
        assert done.code == 0, done.err
        weights.append(done.weights)
        curves.append([row.get("loss") or row["eval_loss"] for row in uneven.metrics(name)])
        assert uneven.state(name)["world_size"] == processes
    assert len(curves[0]) == 21 + 5
    for curve in curves[1:]:
        assert max(abs(a - b) / abs(b) for a, b in zip(curve, curves[0], strict=True)) < 1e-5
    if reduce == "exact":
        assert len(set(weights)) == 1
        assert curves[0] == curves[1] == curves[2]


def test_accelerate_launch_and_torchrun_take_the_same_line(uneven: Workplace) -> None:
    alone = uneven.train("uneven.yaml", "--run", "alone")
    launch = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu.yaml"))
    accelerated = uneven.command(sys.executable, *launch, "-m", "samestep", "train", "uneven.yaml", "--run", "accelerated")
    assert accelerated.code == 0, accelerated.err
    assert uneven.state("accelerated")["world_size"] == 2
    assert accelerated.weights == alone.weights
    assert accelerated.out.startswith("fresh")


def test_two_machines_are_two_lines_that_differ_in_the_rank(uneven: Workplace) -> None:
    alone = uneven.train("uneven.yaml", "--run", "alone").weights
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = str(ROOT / "configs/accelerate/two-nodes.yaml")
    line = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config,
            "--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]  # fmt: skip
    machines = [
        subprocess.Popen(
            [*line, "--machine_rank", rank, "-m", "samestep", "train", "uneven.yaml", "--run", "both"],
            cwd=uneven.path,
            env=uneven.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ends = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    assert uneven.state("both")["world_size"] == 2
    assert uneven.state("both")["weights"] == alone


def test_a_launch_that_quietly_starts_one_process_is_refused(uneven: Workplace) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing."""
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    flags = ("--mixed_precision", "no", "--dynamo_backend", "no")
    done = uneven.command(sys.executable, *launch, *flags, "-m", "samestep", "train", "uneven.yaml", "--run", "quiet")
    assert done.code != 0
    assert "samestep: accelerate launch: --num_processes 2 was asked for and one process started" in done.err
    assert not (uneven.path / "runs").exists()


def test_another_number_of_processes_than_meant_is_refused(uneven: Workplace) -> None:
    done = uneven.train("uneven.yaml", "processes=2")
    assert done.code == 2
    assert done.err.startswith("samestep: processes: 2 were meant and 1 started")
    assert not (uneven.path / "runs").exists()


def test_a_port_of_zero_is_refused_and_does_not_wait_for_ever(uneven: Workplace) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0")
    done = uneven.command(*launcher, "-m", "--", "samestep", "train", "uneven.yaml")
    assert done.code == 1
    assert "samestep: torchrun: found --master_port 0" in done.err


def test_more_processes_than_leaves_are_refused(uneven: Workplace) -> None:
    done = uneven.train("uneven.yaml", "micro_batch_size=16", processes=2)
    assert done.code != 0
    assert "processes: found 2, and a step has 1 leaves to share; start at most 1" in done.err
    assert not (uneven.path / "runs").exists()


def local(workplace: Workplace, *words: str) -> subprocess.Popen[str]:
    """launch/local.sh, with a Python of its own left alone: the tests' own .venv is the project's."""
    return subprocess.Popen(
        ["bash", str(ROOT / "launch/local.sh"), *words],
        cwd=workplace.path,
        env={**workplace.env, "EXTRA": "dev"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_local_sh_trains_on_several_processes_and_exits_with_what_the_state_means(uneven: Workplace) -> None:
    done = local(uneven, "uneven.yaml", "--processes", "2", "--run", "two words", "seed=3")
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    assert uneven.state("two words")["status"] == "done"
    assert uneven.state("two words")["world_size"] == 2
    assert out.rstrip("\n").rpartition("\n")[2] == f"weights {uneven.state('two words')['weights']}"


def test_local_sh_says_what_is_wrong_before_anything_starts(uneven: Workplace) -> None:
    done = local(uneven, "uneven.yaml", "--processes", "2", "sead=3")
    out, err = done.communicate(timeout=200)
    assert done.returncode == 2
    assert err == "samestep: sead: unknown key; did you mean seed?\n"
    assert out == ""
    assert not (uneven.path / "runs").exists()


def test_the_first_failing_rank_has_the_last_word(uneven: Workplace) -> None:
    broken = UNEVEN.replace(
        "        mask =", "        if 37 in batch['row']: raise ValueError('row 37 is broken')\n        mask =", 1
    )
    uneven.write("uneven.py", broken)
    done = local(uneven, "uneven.yaml", "--processes", "2", "--run", "broken")
    _, err = done.communicate(timeout=200)
    assert done.returncode == 1
    assert all(line.startswith(("samestep: rank ", "rank ")) for line in err.splitlines()), err
    last = err.rstrip("\n").rpartition("\n")[2]
    assert re.match(r"samestep: rank [01] on \S+: ValueError: row 37 is broken, at .*uneven.py:\d+ in loss", last), err
    log = Path(re.findall(r"\(log: (.*)\)$", last)[0])
    assert "ValueError: row 37 is broken" in (uneven.path / log).read_text()
    assert uneven.state("broken")["status"] == "failed"


def test_torchrun_itself_prints_the_paragraph(uneven: Workplace) -> None:
    broken = UNEVEN.replace(
        "        mask =", "        if 37 in batch['row']: raise ValueError('row 37 is broken')\n        mask =", 1
    )
    uneven.write("uneven.py", broken)
    done = uneven.train("uneven.yaml", "--run", "broken", processes=2)
    assert done.code == 1
    assert "ValueError: row 37 is broken" in done.err.rpartition("Root Cause")[2]


SLOW = CONFIG.replace("epochs: 3", "epochs: 100000")


def started(workplace: Workplace, run: str, step: int = 20) -> None:
    deadline = time.monotonic() + 120
    path = workplace.path / "runs" / run / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.1)


def test_ranks_die_with_their_launcher(uneven: Workplace) -> None:
    uneven.write("slow.yaml", SLOW)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--",
         "samestep", "train", "slow.yaml", "--run", "slow"],
        cwd=uneven.path, env=uneven.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started(uneven, "slow")
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    assert len(ranks) >= 2
    launcher.kill()
    launcher.wait()
    _gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


def test_a_stop_is_saved_and_the_same_line_goes_on_to_the_same_bits(uneven: Workplace) -> None:
    unbroken = uneven.train("uneven.yaml", "--run", "unbroken", "epochs=60").weights
    words = ["slow.yaml", "--run", "stopped"]
    uneven.write("slow.yaml", CONFIG.replace("epochs: 3", "epochs: 60"))
    first = subprocess.Popen(
        [sys.executable, "-m", "samestep", "train", *words],
        cwd=uneven.path,
        env=uneven.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    started(uneven, "stopped")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=200)
    assert first.returncode == 75
    state = uneven.state("stopped")
    assert state["status"] == "stopped"
    assert 0 < state["step"] < 420
    assert state["reason"].endswith("saved; the same line with --run stopped goes on")
    again = uneven.train(*words, processes=2)
    assert again.out.startswith(f"resumed from step {state['step']}")
    assert again.weights == unbroken
    trained = [row["step"] for row in uneven.metrics("stopped") if "loss" in row]
    assert trained == list(range(1, 421))
    log = (uneven.path / "runs/stopped/log.txt").read_text()
    one, two = re.findall(r"^--- start (\d) on \S+, [\d: +-]+, (.*) ---\n((?:.+\n)*?)(?=---|\Z)", log, re.MULTILINE)
    assert one[:2] == ("1", "1 process")
    assert one[2].startswith("fresh (runs/stopped)\n")
    assert one[2].endswith(f"\nsamestep: {state['reason']}\n")
    assert two == ("2", "2 processes", "".join(f"rank 0: {line}\n" for line in again.out.splitlines()))
    third = uneven.train(*words)
    assert third.code == 0
    assert "is done already" in third.out
    assert third.weights == unbroken


def test_sigusr1_to_the_launcher_alone_is_handed_on_and_all_is_saved(uneven: Workplace) -> None:
    uneven.write("slow.yaml", SLOW)
    words = [sys.executable, "-m", "samestep", "launch", "slow.yaml", "--processes", "2", "--run", "usr1"]
    launcher = subprocess.Popen(words, cwd=uneven.path, env=uneven.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started(uneven, "usr1")
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(100) == 75
    assert uneven.state("usr1")["status"] == "stopped"
    assert list((uneven.path / "runs/usr1/checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_every_process_at_once_loader_processes_too_is_a_stop(uneven: Workplace, number: signal.Signals) -> None:
    uneven.write("slow.yaml", SLOW)
    words = [sys.executable, "-m", "samestep", "train", "slow.yaml", "--run", "all", "workers=2"]
    first = subprocess.Popen(words, cwd=uneven.path, env=uneven.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started(uneven, "all")
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.send_signal(number)
    assert first.wait(100) == 75
    assert uneven.state("all")["status"] == "stopped"


def test_ctrl_c_in_local_sh_saves_and_exits_with_75(uneven: Workplace) -> None:
    uneven.write("slow.yaml", SLOW)
    words = ["bash", str(ROOT / "launch/local.sh"), "slow.yaml", "--processes", "2", "--run", "interrupted"]
    env = {**uneven.env, "EXTRA": "dev"}
    shell = subprocess.Popen(words, cwd=uneven.path, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    started(uneven, "interrupted")
    os.killpg(shell.pid, signal.SIGINT)  # as a terminal does
    _, err = shell.communicate(timeout=200)
    assert shell.returncode == 75
    state = uneven.state("interrupted")
    assert state["status"] == "stopped"
    assert [line for line in err.splitlines() if "|" not in line] == [f"samestep: {state['reason']}"]
    assert (uneven.path / f"runs/interrupted/checkpoints/step-{state['step']:08d}/manifest.json").exists()


def test_under_tee_the_last_line_of_an_interrupted_run_is_in_its_log(uneven: Workplace) -> None:
    """Ctrl-C ends whoever reads, too, and before the run has saved."""
    uneven.write("slow.yaml", SLOW)
    words = f"{sys.executable} -m samestep train slow.yaml --run teed 2>&1 | tee said.txt"
    shell = subprocess.Popen(["bash", "-c", words], cwd=uneven.path, env=uneven.env, start_new_session=True)
    started(uneven, "teed")
    (run,) = [process for process in psutil.Process(shell.pid).children() if "samestep" in process.cmdline()]
    os.killpg(shell.pid, signal.SIGINT)
    shell.wait(100)
    psutil.wait_procs([run], timeout=100)
    told = f"samestep: {uneven.state('teed')['reason']}\n"
    assert told not in (uneven.path / "said.txt").read_text()  # or this proves nothing
    assert uneven.samestep("logs", "teed").out.endswith(f"\n{told}")


def hung_up(workplace: Workplace, processes: int, ignored: bool) -> subprocess.Popen[str]:
    """launch/local.sh, which got SIGHUP with all its children after some steps."""
    workplace.write("slow.yaml", SLOW)
    words = ["bash", str(ROOT / "launch/local.sh"), "slow.yaml", "--processes", str(processes), "--run", "hung-up"]
    env = {**workplace.env, "EXTRA": "dev"}
    shell = subprocess.Popen(
        [*(["nohup"] if ignored else []), *words],
        cwd=workplace.path, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup themselves
    )  # fmt: skip
    started(workplace, "hung-up")
    os.killpg(shell.pid, signal.SIGHUP)
    return shell


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_closes_stops_and_saves(uneven: Workplace, processes: int) -> None:
    shell = hung_up(uneven, processes, ignored=False)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGHUP)  # once from the kernel and once from the shell
    _, err = shell.communicate(timeout=200)
    assert shell.returncode == 75, err
    state = uneven.state("hung-up")
    assert state["status"] == "stopped"
    assert (uneven.path / f"runs/hung-up/checkpoints/step-{state['step']:08d}/manifest.json").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_under_nohup_a_terminal_that_closes_changes_nothing(uneven: Workplace, processes: int) -> None:
    shell = hung_up(uneven, processes, ignored=True)
    started(uneven, "hung-up", len(uneven.metrics("hung-up")) + 500)
    assert uneven.state("hung-up")["status"] == "running"
    os.killpg(shell.pid, signal.SIGTERM)
    _, err = shell.communicate(timeout=200)
    assert shell.returncode == 75, err
    assert uneven.state("hung-up")["status"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_sh_that_is_ended_before_the_run_began_says_so(uneven: Workplace, number: signal.Signals) -> None:
    uneven.write("uneven.py", "import time\ntime.sleep(300)\n")
    words = ["bash", str(ROOT / "launch/local.sh"), "uneven.yaml", "--processes", "2", "--run", "early"]
    env = {**uneven.env, "EXTRA": "dev"}
    shell = subprocess.Popen(words, cwd=uneven.path, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while len(psutil.Process(shell.pid).children(recursive=True)) < 2:
        assert time.monotonic() < until, "the launcher has started no ranks"
        time.sleep(0.1)
    os.killpg(shell.pid, number)
    _, err = shell.communicate(timeout=200)
    assert (shell.returncode, err) == (75, "samestep: stopped before it began; the same line starts it\n")
    assert not (uneven.path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("call", ["launch.launch('uneven.yaml', None, 1, ())", "train.train('uneven.yaml', None, ())"])
def test_a_signal_while_the_config_is_read_is_a_stop_too(uneven: Workplace, number: signal.Signals, call: str) -> None:
    code = f"""
import os, signal
from samestep.commands import launch, train
signal.signal(signal.SIGHUP, signal.SIG_DFL)
launch.load_config = train.load_config = lambda *words: os.kill(os.getpid(), {int(number)})
{call}
"""
    done = uneven.command(sys.executable, "-c", code)
    assert (done.code, done.err) == (75, "samestep: stopped before it began; the same line starts it\n")


def test_a_live_run_has_one_owner(uneven: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from samestep.errors import UsageError
    from samestep.run import folder as run_folder
    from samestep.run import owner

    uneven.write("slow.yaml", SLOW)
    first = subprocess.Popen(
        [sys.executable, "-m", "samestep", "train", "slow.yaml", "--run", "owned"],
        cwd=uneven.path, env=uneven.env, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        started(uneven, "owned")
        monkeypatch.setattr(owner, "_WAIT_S", 0.5)
        with pytest.raises(
            UsageError, match=f"owned by pid {first.pid} on {os.uname().nodename} since [0-9: -]+, which is alive"
        ):
            run_folder.RunFolder(uneven.path / "runs" / "owned").take("here")
    finally:
        first.kill()
        first.wait()
    run_folder.RunFolder(uneven.path / "runs" / "owned").take("here")


def test_local_sh_names_the_rank_that_was_killed(uneven: Workplace) -> None:
    uneven.write(
        "uneven.py", "import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n" + UNEVEN
    )
    _, err = (shell := local(uneven, "uneven.yaml", "--processes", "2", "--run", "killed")).communicate(timeout=200)
    assert shell.returncode != 0
    assert "samestep: rank 1 was ended by SIGKILL" in err.splitlines(), err
