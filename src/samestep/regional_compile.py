"""torch.compile, block by block.

Compiling a whole model under DDP cuts its graph where the buckets end, and those depend on the number of processes: other
graphs, other bits. So each repeated block is compiled on its own, and DDP never sees a graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint


def compile_blocks(model: nn.Module) -> None:
    """Compile every block of the model's repeated lists in place, or the whole model where nothing is repeated.

    Shapes are fixed: a short batch gets a graph of its own instead of making all later ones dynamic. Too many shapes are an
    error and no silent fall back to uncompiled code, whose bits would differ.
    """
    import torch._dynamo  # here alone: it takes longer than the rest of a start

    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in repeated_blocks(model) or [model]:
        block.compile(dynamic=False)


def recompute_blocks(model: nn.Module) -> None:
    """Keep of each repeated block's forward its input alone, and compute the rest again in the backward.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Random numbers and buffers are the same both times.
    """
    for block in repeated_blocks(model) or [model]:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=functools.partial(_contexts, block)
        )


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _buffers_kept(block)


@contextlib.contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """A forward inside leaves no trace in the buffers: running statistics have been counted once already."""
    kept = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the model's lists of alike ones, in order; of a list within a block nothing."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            blocks = list(module)
            if len(blocks) > 1 and len({type(block) for block in blocks}) == 1:
                found += blocks
                inside.update(part for block in blocks for part in block.modules())
    return found
