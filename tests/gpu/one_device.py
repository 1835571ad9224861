"""`samestep …` for ranks that share one GPU: torchrun … one_device.py train …

NCCL wants a device for each rank; gloo copies through the host, and everything else is what several GPUs run.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from samestep.cli import main

as_it_is = dist.init_process_group


def by_gloo(backend: str | None = None, **more: Any) -> None:
    as_it_is(backend="gloo", **more)


dist.init_process_group = by_gloo  # type: ignore[assignment]
main()
