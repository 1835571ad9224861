"""What the ranks that live save after a fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from samestep.session import failure


def fake_run(best: int | None, read_steps: int) -> Any:
    nothing: Any = SimpleNamespace(flush=lambda state, finished: None, roll_back=lambda: True, read_steps=read_steps)
    return SimpleNamespace(
        optimizer=SimpleNamespace(hold=lambda patience_s: True),
        finished=6,
        first_step=3,
        checks=SimpleNamespace(purity=nothing),
        reports=nothing,
        sums=SimpleNamespace(statistics=nothing, sharded=None),
        evaluation=SimpleNamespace(best=SimpleNamespace(step=best)),
    )


@pytest.mark.parametrize(
    ("rank", "best", "on_disk", "saves"),
    [
        (1, None, [], True),
        (1, 5, [5], True),
        (1, 6, [], True),  # it is this very step
        (1, 5, [3], False),  # the run would be left without its best
        (1, 5, [], False),
        (1, 4, [3, 5], True),  # its disk refused the best: going back would not meet it again
        (0, 5, [3], True),  # rank 0 lives, and saves them one after the other
    ],
)
def test_a_survivor_saves_nothing_beyond_a_best_that_never_reached_the_disk(
    rank: int, best: int | None, on_disk: list[int], saves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(failure, "is_chosen", lambda *words: True)
    run = fake_run(best, read_steps=6)
    again = lambda step: all(there < step for there in on_disk)  # noqa: E731
    saver: Any = SimpleNamespace(
        save_now=lambda step, patience_s: saved.append(step),
        would_meet_again=again,
    )
    folder: Any = SimpleNamespace(claim_save=None, write_state=lambda **state: None)
    runtime: Any = SimpleNamespace(world_size=2, rank=rank, is_main=rank == 0)
    board: Any = None
    assert failure.save_what_is_finished(run, saver, folder, runtime, board)
    assert saved == ([6] if saves else [])


def test_no_step_is_saved_whose_numbers_were_never_read() -> None:
    saved: list[int] = []
    saver: Any = SimpleNamespace(save_now=lambda step, patience_s: saved.append(step))
    runtime: Any = SimpleNamespace(world_size=1, rank=0, is_main=True)
    nothing: Any = None
    for read_steps in (5, 6):
        assert failure.save_what_is_finished(fake_run(None, read_steps), saver, nothing, runtime, nothing)
    assert saved == [6]
