"""Two ranks that agree on things, for `test_agreement.py`: prints what each has heard."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from samestep.control import agreed, decided_by_main, everyones
from samestep.errors import Stopped, TrainingError, UsageError


def heard(ask: Any) -> str:
    try:
        return repr(ask())
    except (UsageError, TrainingError, Stopped) as error:
        return f"{type(error).__name__}{getattr(error, 'lines', error.args)}"


def refuse(error: Exception) -> NoReturn:
    raise error


def main(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timedelta(seconds=30))
    mine: Any = {"rank": rank, "text": "é" * (1 + 40 * rank), "nothing": None, "numbers": (0.1, -math.inf, 2**70, rank == 1)}
    found = [
        heard(lambda: everyones(mine)),
        heard(lambda: everyones("")),
        heard(lambda: decided_by_main(lambda: {"at": 1 / 3, "rank": rank})),
        heard(lambda: decided_by_main(lambda: None)),
        heard(lambda: decided_by_main(lambda: refuse(UsageError("lr: no", "steps: no")))),
        heard(lambda: decided_by_main(lambda: refuse(Stopped("early")))),
        heard(lambda: decided_by_main(lambda: refuse(TrainingError("late")))),
        heard(lambda: agreed(lambda: refuse(UsageError("second")) if rank else "first")),
    ]
    print("\n".join(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
