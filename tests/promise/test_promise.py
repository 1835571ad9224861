"""Drawn runs come to what a plain loop in one process comes to, bit for bit, whatever happens to them; or are refused.

In CI for two minutes, from a seed that is printed. By command, as many as are asked for:
`PROMISE_RUNS=1000 bash tests/run.sh -m long tests/promise -s`, and with `PROMISE_SEED=N` the same ones again.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import traceback
from collections.abc import Iterator

import draw
import pytest
from check import Checker
from examples import LINES
from hypothesis import HealthCheck, Phase, given, seed, settings

_AT_A_TIME = 8
_settings = settings(
    deadline=None,
    derandomize=False,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    checker = Checker()
    yield checker
    print("\n" + checker.report())
    checker.close()


@pytest.mark.parametrize("line", LINES)
def test_what_failed_once_holds(checker: Checker, line: str) -> None:
    checker.check(json.loads(line))


def _drawn(checker: Checker, count: int, longest_s: float, phases: list[Phase]) -> list[str]:
    """Few at a time, each time from a new seed: hypothesis likes to vary what it has drawn before. Returns what failed."""
    number = int(os.environ.get("PROMISE_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"\nPROMISE_SEED={number}", flush=True)
    ends_at = time.monotonic() + longest_s
    before = checker.counts["runs"]
    failed: list[str] = []
    while checker.counts["runs"] - before < count and time.monotonic() < ends_at:

        @seed(number)
        @settings(_settings, max_examples=_AT_A_TIME, phases=phases)
        @given(draw.runs())
        def hold(run: draw.Run) -> None:
            if time.monotonic() < ends_at:
                checker.check(run)

        try:
            hold()
        except Exception as error:
            said = re.search(
                r"check\.Broken: .*?replay: .*?$", "".join(traceback.format_exception(error)), re.DOTALL | re.MULTILINE
            )
            failed.append(said[0] if said else repr(error))
            print(failed[-1], flush=True)
        number += 1
    return failed


@pytest.mark.timeout(1800)  # a failure takes its time to be shrunk
def test_drawn_runs_hold(checker: Checker) -> None:
    assert not _drawn(checker, 10_000, float(os.environ.get("PROMISE_SECONDS", "100")), [Phase.generate, Phase.shrink])


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_drawn_runs_hold(checker: Checker) -> None:
    assert not _drawn(checker, int(os.environ.get("PROMISE_RUNS", "1000")), 7000.0, [Phase.generate])
