"""Two ranks of one machine, of which the first prepares for longer than a collective may take, for `test_agreement.py`."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch.distributed as dist

from samestep.control import agreement, first_on_each_machine
from samestep.runtime.shared_memory import abort

MOST_S = 2.0
agreement._TOLD_EVERY_S = 1.0


def main(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timedelta(seconds=MOST_S))
    abort.longest_wait_s = MOST_S

    def prepare() -> str:
        time.sleep(2.5 * MOST_S)
        return f"rank {rank}"

    print(first_on_each_machine(rank, prepare, "data() runs"), abort.longest_wait_s, flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
