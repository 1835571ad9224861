"""Ranks, launchers and network cards are read right, in the one place that reads them."""

from __future__ import annotations

import os
import re
import socket
import sys
from types import SimpleNamespace

import psutil
import pytest

from conftest import ROOT, Workplace
from samestep.errors import UsageError
from samestep.runtime import ranks as runtime


def cards(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    entries = {name: [SimpleNamespace(address=address)] for name, address in names.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)


def test_a_host_name_that_means_127_0_1_1_is_reached_through_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, {"lo": "127.0.0.1", "eth0": "192.0.2.7"})
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert runtime.network_interface("debian") == "lo"


def test_the_main_node_finds_the_card_that_has_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, {"lo": "127.0.0.1", "eth0": "192.0.2.7", "ib0": "198.51.100.7"})
    assert runtime.network_interface("198.51.100.7") == "ib0"


def test_an_unknown_host_is_left_to_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise OSError("no such host")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert runtime.network_interface("nowhere.invalid") is None


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["python", "/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "samestep"], 2),
        (["python", "-m", "accelerate.commands.launch", "--num_processes=4", "-m", "samestep"], 4),
        (["accelerate", "launch", "-m", "samestep", "train", "--num_processes", "2"], None),
        (["bash", "run.sh", "--num_processes", "2"], None),
    ],
)
def test_the_processes_that_accelerate_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str], asked: int | None
) -> None:
    parent = SimpleNamespace(cmdline=lambda: words)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    here = runtime.Runtime(0, 1, 0, 1, True, "host", None)
    if asked is None:
        runtime.refuse_another_world_size(here, None)
        return
    with pytest.raises(UsageError, match=f"--num_processes {asked} was asked for and one process started"):
        runtime.refuse_another_world_size(here, None)


def test_an_array_task_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert runtime.read_runtime().job == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert runtime.read_runtime().job == "15_2"


@pytest.mark.parametrize(("visible", "number"), [("", 0), ("0", 1), ("0,3", 2), ("-1", 0)])
def test_visible_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch, visible: str, number: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert runtime.visible_gpus() == number
    assert runtime.processes_here("cpu", 3) <= 3


@pytest.mark.parametrize(("before", "after"), [(None, "ERROR"), ("INFO", "INFO")])
def test_the_backends_warn_only_who_asks(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.setattr(os, "environ", {} if before is None else {"TORCH_CPP_LOG_LEVEL": before})
    runtime.prepare_environment(runtime.Runtime(0, 1, 0, 1, False, "host", None), threads=1)
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == after


@pytest.mark.parametrize(
    ("name", "value", "numbers"),
    [
        ("WORLD_SIZE", "", "1"),
        ("WORLD_SIZE", "two", "1"),
        ("WORLD_SIZE", "0", "1"),
        ("RANK", "", "0 to 1"),
        ("RANK", "2", "0 to 1"),
        ("RANK", "-1", "0 to 1"),
        ("RANK", "²", "0 to 1"),
        ("LOCAL_RANK", "1.0", "0 to 1"),
        ("LOCAL_WORLD_SIZE", "3", "1 to 2"),
    ],
)
def test_what_no_launcher_sets_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, numbers: str) -> None:
    for other in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(other, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    found = (
        f"^{name}: found '{re.escape(value)}' in the environment, where a launcher sets a number from {numbers}; write unset"
    )
    with pytest.raises(UsageError, match=found):
        runtime.read_runtime()


def test_an_empty_world_size_ends_train_in_one_line_and_status_does_not_care(workplace: Workplace) -> None:
    workplace.env["WORLD_SIZE"] = ""
    done = workplace.train(str(ROOT / "configs/seed.yaml"), "--run", "r")
    assert done.code == 2
    assert done.err.startswith("samestep: WORLD_SIZE: found ''")
    assert len(done.err.splitlines()) == 1
    assert not (workplace.path / "runs").exists()
    assert workplace.samestep("status").err.startswith("samestep: runs: found no run there")


ON_A_GPU = """
import torch
torch.cuda.is_available = lambda: True
from samestep.config import load_config
from samestep.session import make_accelerator
print(make_accelerator(load_config("seed.yaml", ["device=auto"])[0]).device)
"""


def test_one_process_on_a_gpu_asks_for_no_process_group(workplace: Workplace) -> None:
    workplace.write("seed.yaml", (ROOT / "configs/seed.yaml").read_text())
    done = workplace.command(sys.executable, "-c", ON_A_GPU)
    assert done.out == "cuda\n", done.err
