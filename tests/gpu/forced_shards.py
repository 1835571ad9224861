"""The ordered sum over a sharded model, forced in one process, against the local fold: torchrun … forced_shards.py cuda:nccl.

With one process FSDP2 copies a gradient and asks nobody to reduce it; here it asks all the same.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as of_fsdp

from samestep.exact import OrderedSum, ShardedModel, ShardedSum

KIND, BACKEND = sys.argv[1].split(":")
LEAVES, SIZE = 7, 2
as_it_is: Any = vars(of_fsdp)["foreach_reduce"]


def forced(params: Any, grads: Any, group: Any, stream: Any, comm: Any, *rest: Any, **more: Any) -> Any:
    found = as_it_is(params, grads, group, stream, comm, *rest, **more)
    with torch.cuda.stream(stream) if KIND == "cuda" else contextlib.nullcontext():
        grad = params[0].sharded_param.grad._local_tensor
        flat = torch.empty(0, dtype=grad.dtype, device=grad.device).set_(grad.untyped_storage())
        if KIND == "cuda":
            torch.cuda._sleep(20_000_000)  # a missing wait would read gradients that are not there yet
        comm(output_tensor=flat, input_tensor=flat.clone(), group=group, op=None)
    if KIND == "cuda":
        torch.cuda.current_stream().wait_stream(stream)
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.never = nn.Linear(65, 33), nn.Linear(3, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(33, 33), nn.GELU(), nn.Linear(33, 33)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inward(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def main() -> None:
    vars(of_fsdp)["foreach_reduce"] = forced
    dist.init_process_group("gloo" if BACKEND == "gloo" else f"cpu:gloo,cuda:{BACKEND}")
    device = torch.device(KIND, 0) if KIND == "cuda" else torch.device(KIND)
    torch.manual_seed(0)
    plain, cut = Net(), Net()
    cut.load_state_dict(plain.state_dict())
    plain.to(device)
    data = torch.randn(LEAVES * SIZE, 16, 65, device=device)
    assert dist.group.WORLD is not None
    sharded = ShardedModel(cut, list(cut.blocks), device, dist.group.WORLD)
    local = OrderedSum(plain, LEAVES * SIZE, LEAVES)
    summed = ShardedSum(sharded, LEAVES * SIZE, LEAVES, [shard.local for shard in sharded.shards])
    for _ in range(5):
        for ordered, model in ((local, plain), (summed, cut)):
            for index in ordered.share:
                ordered.begin_micro_batch(index)
                ordered.connect(model(data[index].clone()).square().sum()).backward()
                ordered.end_micro_batch(index)
        expected, found = local.finish(local.used), summed.finish(summed.used)
        assert len(expected) == len(found) == 18
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
        local.clear()
    dist.destroy_process_group()
    print("the same")


main()
