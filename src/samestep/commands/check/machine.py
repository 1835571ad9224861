"""What a run needs besides its task: devices that compute alike, the tracker's server, the libraries."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from importlib.metadata import version
from urllib.parse import urlparse

import torch
from torch.cuda import comm

from samestep.commands import verify
from samestep.config import Config
from samestep.config.preflight import Line, shown_bytes
from samestep.errors import SamestepError
from samestep.exact import fingerprint
from samestep.tracking import wandb_mode

_SIZE = 1024  # of the matrices that devices multiply
_SUM_BYTES = 64_000_000
_WANDB_S = 3.0


def devices(config: Config) -> Line:
    """The same product of matrices on each device of this machine, or twice where there is one, to the bit."""
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    places = ["cpu"] if on_cpu else [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    factors = torch.randn(2, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[int]] = {}
    for place in places:
        try:
            found[place] = [_product(factors, place) for _ in range(2)]
        except RuntimeError as error:  # another process has filled it, or has it for itself
            return Line("warning", "devices", f"{place} computes nothing now: {str(error).splitlines()[0]}")
    first = found[places[0]][0]
    wrong = [place for place, prints in found.items() if prints != [first, first]]
    if wrong:
        words = f"a product of matrices comes out different on {', '.join(wrong)}; leave that out, it is not healthy"
        return Line("error", "devices", words)
    if len(places) > 1:
        return Line("ok", "devices", f"the same product of matrices on all {len(places)}, to the bit; {_sum_over(places)}")
    what = "this CPU; there is no GPU to compare" if on_cpu else torch.cuda.get_device_name(0)
    return Line("ok", "devices", f"the same product of matrices twice on {what}")


def _product(factors: torch.Tensor, place: str) -> int:
    one, other = factors.to(place)
    return int(fingerprint([one @ other])[0])


def _sum_over(places: list[str]) -> str:
    """How long it takes to add a tensor of each device up, and to have the sum on each."""
    tensors = [torch.ones(_SUM_BYTES // 4, device=place) for place in places]
    numbers = [torch.device(place).index for place in places]

    def add_up() -> float:
        begun = time.perf_counter()
        comm.broadcast(comm.reduce_add(tensors), numbers)
        for number in numbers:
            torch.cuda.synchronize(number)
        return time.perf_counter() - begun

    try:
        add_up()
        seconds = min(add_up() for _ in range(3))
    except RuntimeError as error:
        return f"a sum over them could not be tried ({str(error).splitlines()[0]})"
    return f"a sum of {shown_bytes(_SUM_BYTES)} over them takes {seconds * 1e3:.3g} ms, in one process"


def trackers(config: Config) -> Line:
    mode = wandb_mode(config.track.wandb)
    if mode != "online":
        return Line("ok", "wandb", mode)
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (80 if address.scheme == "http" else 443)
    with contextlib.suppress(OSError), socket.create_connection((address.hostname or "", port), _WANDB_S):
        return Line("ok", "wandb", f"online, and {address.hostname} answers")
    return Line("warning", "wandb", f"online, and {address.hostname} does not answer; write track.wandb=offline")


def versions() -> Line:
    return Line("ok", "versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "datasets")))


def kept_bits(config_path: str, processes: str | None, overrides: tuple[str, ...]) -> Line:
    try:
        return Line("ok", "bits", verify.verify(config_path, processes, 3, overrides).splitlines()[-1])
    except SamestepError as error:
        return Line("error", "bits", str(error).splitlines()[-1])
