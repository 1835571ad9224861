"""torch.compile, block by block.

Compiling a whole model under DDP cuts its graph where the buckets end, and those depend on the number of processes: other
graphs, other bits. So each repeated block is compiled on its own, and DDP never sees a graph.
"""

from __future__ import annotations

import contextlib
import functools
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MOST_SHAPES = 8  # that a block may meet
_MODES = 2  # training and evaluation


def compile_blocks(model: nn.Module) -> None:
    """Compile every block of the model's repeated lists in place, or the whole model where nothing is repeated.

    Shapes are fixed: a short batch gets a graph of its own instead of making all later ones dynamic. Too many shapes are an
    error and no silent fall back to uncompiled code, whose bits would differ. Blocks that differ in a plain attribute, a rate
    of drop-path say, are programs of their own too, in training and in evaluation, and count as such.
    """
    import torch._dynamo  # here alone: it takes longer than the rest of a start

    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    blocks = repeated_blocks(model) or [model]
    limits = torch._dynamo.config  # of one forward's code, which the blocks share
    limits.recompile_limit = MOST_SHAPES * _MODES * len(blocks)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in blocks:
        if "forward" in vars(block):
            block.forward = torch.compile(block.forward, dynamic=False)
        else:  # a method still, so that a copy of the model computes with the copy's weights
            block.forward = types.MethodType(torch.compile(type(block).forward, dynamic=False), block)


def recompute_blocks(model: nn.Module) -> None:
    """Keep of each repeated block's forward its input alone, and compute the rest again in the backward.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Random numbers and buffers are the same both times.
    Around compiled blocks and not within: what a compiler sees of it, it fuses into other kernels, which round in other places.
    """
    for block in repeated_blocks(model) or [model]:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=functools.partial(_contexts, block)
        )


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Around a block's forward, and around its second in the backward: that begins with what the first began with."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    averages = {id(buffer) for norm in norms for buffer in norm.buffers()}  # which change without a new version
    found: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]] = []  # what the forward has changed, as it was
    drawn: list[Any] = []

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        spots = [(names, key, b) for module in block.modules() for names in [module._buffers] for key, b in names.items()]
        before = [(names, key, b, b.clone(), b._version) for names, key, b in spots if b is not None]
        drawn.extend([random.getstate(), np.random.get_state()])
        yield
        for names, key, buffer, value, version in before:
            if id(buffer) in averages or names[key] is not buffer or buffer._version != version:
                found.append((names, key, value))

    @contextlib.contextmanager
    def second() -> Iterator[None]:
        left = random.getstate(), np.random.get_state()
        after = [(names, key, names[key]) for names, key, _ in found]
        for names, key, value in found:
            names[key] = value  # a copy, so that what the forward left stays as it is
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        try:
            yield
        finally:
            for names, key, buffer in after:
                names[key] = buffer
            random.setstate(left[0])
            np.random.set_state(left[1])

    return first(), second()


_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # of which nobody calls a forward


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the model's lists of alike ones, in order; of a list within a block nothing."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            blocks = list(dict.fromkeys(module))
            if len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and not isinstance(blocks[0], _CONTAINERS):
                found += blocks
                inside.update(part for block in blocks for part in block.modules())
    return found
