"""The kernels that inductor would launch on an H200 for a GPT's block, read on a CPU: `python bench/inductor_code.py [WAY …]`.

The block is traced, and inductor writes its Triton code for a GPU that is not there; nothing of it runs. A line of JSON for
each way to set inductor: launches forward and backward, matrix products and other calls out of Triton, atomics, how many a
mixed reduction is split into, for each reduction the configurations that would be tried, and a sum over the kernels' text.
Where each reduction has one configuration nothing is tuned, and two ways with equal text and reductions launch the same. What
is mocked is what torch 2.13 asks of a device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config as inductor
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import _recursive_post_grad_passes
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from samestep.tasks.gpt import Block

ROWS, LENGTH, WIDTH, HEADS = 16, 1024, 768, 12
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether torch is deterministic, as exact runs have it, and inductor's config
    "as it comes": (False, {}),
    "exact": (True, {}),
    "exact, no mixed reductions": (True, {"triton.mix_order_reduction": False}),
}
_H200 = {
    "multi_processor_count": 132,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "major": 9,
}
_NAMED = {"minor": 0, "name": "H200", "gcnArchName": "", "total_memory": 1 << 37, "shared_memory_per_block_optin": 232448}


@contextlib.contextmanager
def an_h200() -> Iterator[None]:
    """What inductor asks of a GPU while it writes code, answered as an H200 would."""
    properties = DeviceProperties(type="cuda", index=0, cc=90, **_H200)
    target = types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda *_: types.SimpleNamespace(**_H200, **_NAMED),
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "synchronize": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(DeviceProperties, "create", classmethod(lambda *_: properties)))
        stack.enter_context(mock.patch.object(type(driver), "active", target))
        yield


def code_of(block: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """What inductor writes for a block's forward and for its backward, in bf16 under autocast, with flash attention."""
    mode, written = FakeTensorMode(), []

    def write(gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        with mode:
            moved = [torch.empty_strided(e.shape, e.stride(), dtype=e.dtype, device="cuda:0") for e in example_inputs]
        for node in gm.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        FakeTensorProp(gm, mode).propagate_dont_convert_inputs(*moved)
        with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            view_to_reshape(gm)
            _recursive_post_grad_passes(gm, is_inference=False)
            lowering = GraphLowering(gm, example_inputs=moved, is_inference=False)
            with V.set_graph_handler(lowering):
                lowering.run(*moved)
                written.append(str(getattr(code := lowering.codegen()[0], "value", code)))
        boxed: Callable[..., Any] = make_boxed_func(gm.forward)
        return boxed

    def forward(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: torch.Tensor = functional_call(block, weights, (x,))
        return out

    flash: Callable[..., Any] = lambda q, k, v, **_: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]  # noqa: E731
    with mode, mock.patch.object(F, "scaled_dot_product_attention", flash):
        weights = {name: torch.empty(p.shape, requires_grad=True) for name, p in block.named_parameters()}
        compiled = aot_function(
            forward,
            fw_compiler=write,
            bw_compiler=write,
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
        compiled(weights, torch.empty(shape, requires_grad=True)).sum().backward()
    return written


def read(code: str) -> dict[str, Any]:
    """Of one graph's code: its launches by kind, and the configurations of each reduction."""
    body = code[code.index("def call(") :]
    reductions, text = {}, ""
    for name, source in re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", code, re.DOTALL):
        text += source[source.index(f"def {name}(") :]
        module = PyCodeCache.load(source.replace("triton_helpers.set_driver_to_gpu()", ""))
        tuner = next(value for value in vars(module).values() if isinstance(value, CachingAutotuner))
        if not name.startswith("triton_poi"):
            reductions[name] = sorted(str({**c.kwargs, "warps": c.num_warps}) for c in tuner.configs)
    return {
        "triton": len(re.findall(r"^\s+triton_\w+\.run\(", body, re.MULTILINE)),
        "products": sum(Counter(re.findall(r"extern_kernels\.(\w+)\(", body)).values()),
        "others": sorted(set(re.findall(r"= (torch\.ops\.[\w.]+)\(", body))),
        "atomics": text.count("tl.atomic"),
        "text": hashlib.sha256(text.encode()).hexdigest()[:12],
        "reductions": reductions,
    }


def read_block(way: str) -> dict[str, Any]:
    """`read` of a GPT block's forward and backward, as inductor writes them in one of WAYS."""
    deterministic, patches = WAYS[way]
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with an_h200(), inductor.patch(patches):
        forward, backward = code_of(Block(WIDTH, HEADS, 0.0), (ROWS, LENGTH, WIDTH))
        return {"way": way, "forward": read(forward), "backward": read(backward)}


if __name__ == "__main__":
    for way in sys.argv[1:] or WAYS:
        print(json.dumps(read_block(way)))
