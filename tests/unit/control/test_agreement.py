"""What ranks tell each other is JSON: the same on each of them, and nothing in it can run."""

from __future__ import annotations

import datetime
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from samestep.control.abort import unhurried
from samestep.control.agreement import _said

pytestmark = pytest.mark.timeout(90)


def test_two_ranks_hear_the_same(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("agreeing.py")
    words = [[sys.executable, str(worker), str(rank), str(tmp_path / "meeting")] for rank in range(2)]
    ranks = [subprocess.Popen(word, stdout=subprocess.PIPE, text=True) for word in words]
    try:
        first, second = (rank.communicate(timeout=80)[0] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert first == second
    assert first.splitlines() == [
        "[{'rank': 0, 'text': 'é', 'nothing': None, 'numbers': [0.1, -inf, 1180591620717411303424, False]}, "
        f"{{'rank': 1, 'text': '{'é' * 41}', 'nothing': None, 'numbers': [0.1, -inf, 1180591620717411303424, True]}}]",
        "['', '']",
        "{'at': 0.3333333333333333, 'rank': 0}",
        "None",
        "UsageError('lr: no', 'steps: no')",
        "Stopped('early',)",
        "TrainingError('late',)",
        "UsageError('second',)",
    ]


def test_every_group_is_unhurried_inside(tmp_path: Path) -> None:
    """A sharded model has groups of its own, which wait for `data()` too."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        backends = [group._get_backend(torch.device("cpu")) for group in (dist.group.WORLD, dist.new_group([0])) if group]
        with unhurried():
            inside = {backend.options._timeout for backend in backends}
        after = {backend.options._timeout for backend in backends}
    finally:
        dist.destroy_process_group()
    assert len(backends) == 2
    assert inside == {datetime.timedelta(days=30)}
    assert after == {datetime.timedelta(minutes=30)}


def test_who_waits_for_data_waits_as_long_as_it_takes_and_is_told_for_what(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("preparing.py")
    words = [[sys.executable, str(worker), str(rank), str(tmp_path / "meeting")] for rank in range(2)]
    ranks = [subprocess.Popen(word, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for word in words]
    try:
        (first, told), (second, other) = (rank.communicate(timeout=80) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert (first, second) == ("rank 0 2.0\n", "rank 1 2.0\n"), told + other
    assert ": data() runs, for 0 min now; the other ranks wait\n" in told
    assert "data() runs" not in other


def test_a_pickle_from_a_peer_is_not_opened() -> None:
    class Opened:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("opened",)

    with pytest.raises(UnicodeDecodeError):
        _said(torch.frombuffer(bytearray(pickle.dumps(Opened())), dtype=torch.uint8))
