"""How a machine is shared out among the runs of a sweep."""

from __future__ import annotations

import os

import pytest

from samestep.commands import sweep
from samestep.config import Config, load_config


def configs(*overrides: tuple[str, ...]) -> list[Config]:
    return [load_config("seed", words)[0] for words in overrides]


@pytest.mark.parametrize(
    ("runs", "jobs", "places"),
    [
        ([()] * 9, None, ["0", "1", "2", "3"]),
        ([()] * 2, None, ["01", "23"]),  # the others would idle, and the bits are the same
        ([()] * 9, 2, ["01", "23"]),
        ([()] * 9, 6, ["0", "1", "2", "3", "0", "1"]),
        ([("processes=2",)] * 9, None, ["01", "23"]),
        ([("processes=2",), ()], 3, ["01", "23"]),
        ([("processes=2",)] * 9, 3, ["01", "23", "01"]),
        ([("processes=2",), ("device=cpu",)], 1, ["0123"]),
    ],
)
def test_gpus_are_dealt_in_equal_parts(
    monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, ...]], jobs: int | None, places: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    shares = sweep._shared_out(configs(*runs), jobs)
    assert ["".join(place) for place in shares.places] == places
    assert ("for 4 GPUs" in shares.why) == (jobs is None)


@pytest.mark.parametrize(
    ("runs", "jobs", "at_once", "processes"),
    [
        ([()] * 20, None, 12, 1),
        ([("threads=4",)] * 20, None, 3, 1),
        ([("processes=4",)] * 20, None, 3, 4),
        ([("threads=16",)] * 20, None, 1, 1),
        ([()] * 20, 3, 3, 4),
        ([()] * 20, 30, 20, 1),
        ([()], None, 1, 8),  # more are none of `launch` either
    ],
)
def test_without_gpus_cores_are_shared_out_by_the_threads_of_a_run(
    monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, ...]], jobs: int | None, at_once: int, processes: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(12)})
    shares = sweep._shared_out(configs(*runs), jobs)
    assert (len(shares.places), shares.processes) == (at_once, processes)
    assert shares.places == [[]] * at_once
