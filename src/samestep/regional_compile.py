"""torch.compile, block by block.

Compiling a whole model under DDP cuts its graph where the buckets end, and those depend on the number of processes: other
graphs, other bits. So each repeated block is compiled on its own, and DDP never sees a graph.
"""

from __future__ import annotations

from torch import nn


def compile_blocks(model: nn.Module) -> None:
    """Compile every block of the model's repeated lists in place, or the whole model where nothing is repeated.

    Shapes are fixed: a short batch gets a graph of its own instead of making all later ones dynamic. Too many shapes are an
    error and no silent fall back to uncompiled code, whose bits would differ.
    """
    import torch._dynamo  # here alone: it takes longer than the rest of a start

    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in _repeated(module)]
    for block in blocks or [model]:
        block.compile(dynamic=False)


def _repeated(blocks: nn.ModuleList) -> list[nn.Module]:
    found = list(blocks)
    return found if len(found) > 1 and len({type(block) for block in found}) == 1 else []
