"""The same bits in a loop of your own: three lines around a plain DDP loop.

torchrun --standalone --nproc_per_node 3 examples/own_loop.py     # any number from 1 to 8: the same last line
"""

import hashlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from samestep import exact

MICRO_BATCHES, ROWS, STEPS = 8, 4, 20


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = torch.randn(STEPS, MICRO_BATCHES, ROWS, 10)
    bare = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    model = DistributedDataParallel(bare, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)

    ordered = exact.OrderedSum(model, micro_batches=MICRO_BATCHES)  # 1
    for step in range(STEPS):
        optimizer.zero_grad()
        for index in ordered.share:
            with ordered.micro_batch(index):  # 2
                x = data[step, index].clone()  # a view's alignment depends on where it lies, and kernels look at that
                ordered.backward((model(x) - x).square().sum())  # 3
        for grad in ordered.finish():
            grad.div_(MICRO_BATCHES * ROWS)
        optimizer.step()

    if dist.get_rank() == 0:
        weights = b"".join(parameter.detach().numpy().tobytes() for parameter in bare.parameters())
        print(hashlib.sha256(weights).hexdigest(), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # no teardown: a thread of gloo may hold a tensor until then, wants Python's lock and aborts


if __name__ == "__main__":
    main()
