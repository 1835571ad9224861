"""Which kernel computes attention on a GPU: the fastest of those whose gradients are the same bits each time.

Under torch's deterministic switch flash attention adds its gradients in a fixed order, and memory-efficient attention takes one
split of the keys (PyTorch: aten/src/ATen/native/transformers/cuda/attention_backward.cu, `num_splits_key = 1`; notes on
randomness, "CUDA SDPA determinism"). cuDNN's attention has no such way in torch, and stays off in exact mode.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any, Self

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from samestep.errors import UsageError

# FlashAttention 3 and 4 by torch's own registry: the module, its distribution, and the GPUs it computes on.
_REGISTERED = {
    "fa4": ("flash_attn.cute.interface", "flash-attn-4", (9, 10)),
    "fa3": ("flash_attn_interface", "flash-attn-3", (9,)),
}
_MOST_OF_FLASH = 256  # numbers of a head
_LOW = (torch.float16, torch.bfloat16)
_COSTS = {
    "flash": "a fixed order of its sums costs some of its speed",
    "efficient": "one split of the keys, where it might have taken several",
    "math": "it keeps a number for each pair of places, so that memory grows with the square of the length",
}


def choose_attention(wanted: str, exact: bool) -> None:
    """Set torch's switches for this process. Raises UsageError for a kernel that is not to be had here.

    Args:
        wanted: of the config: `auto`, or the one kernel there is to be.
        exact: whether sums have one order; else `auto` leaves the choice to torch.
    """
    if wanted == "auto" and not exact:
        return
    switches = torch.backends.cuda
    switches.enable_cudnn_sdp(False)
    switches.enable_flash_sdp(wanted in ("auto", "flash", *_REGISTERED))
    switches.enable_mem_efficient_sdp(wanted in ("auto", "efficient"))
    switches.enable_math_sdp(wanted in ("auto", "math"))
    for name in _REGISTERED if wanted == "auto" else (wanted,):
        if name not in _REGISTERED:
            return
        reason = _activated(name)
        if reason is None:
            return
        if wanted == name:
            raise UsageError(f"attention: found {name}, and {reason}; write auto, flash, efficient or math")


def _activated(name: str) -> str | None:
    """Have torch's flash attention computed by this one. Returns why that cannot be."""
    module, _, generations = _REGISTERED[name]
    registry: Any = torch.nn.attention
    if not hasattr(registry, "activate_flash_attention_impl"):
        return f"torch {torch.__version__} has no place for it: that is in 2.11 and newer"
    if not _is_installed(module):
        return f"there is no {module} to import"
    if torch.cuda.get_device_capability()[0] not in generations:
        return f"{torch.cuda.get_device_name()} is no GPU that it computes on"
    try:
        registry.activate_flash_attention_impl(name.upper())
    except Exception as error:  # whatever a prototype finds fault with
        return f"it does not start ({error})"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of a package above it
        return False


def attention_kind() -> str:
    """The kernels that torch may take in this process: the first that fits an attention's inputs."""
    switches = torch.backends.cuda
    cudnn = getattr(switches, "cudnn_sdp_enabled", lambda: False)()
    enabled = {
        "cudnn": cudnn,
        _flash(): switches.flash_sdp_enabled(),
        "efficient": switches.mem_efficient_sdp_enabled(),
        "math": switches.math_sdp_enabled(),
    }
    return ", ".join(name for name, is_on in enabled.items() if is_on)


def _flash() -> str:
    current = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    if current is None:
        return "flash"
    _, distribution, _ = _REGISTERED[current.lower()]
    try:
        return f"{current.lower()} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{current.lower()} of an unknown version"


class AttentionCalls(TorchFunctionMode):
    """Inside, hears of each attention which kernel it takes: on a CPU, which one a GPU would take.

    Attributes:
        found: how many there were of each kernel and inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], int] = {}
        self._function: Any = functional.scaled_dot_product_attention
        self._is_heard = False

    def __enter__(self) -> Self:
        functional.scaled_dot_product_attention = self._within  # for callers within torch, where a mode is not asked
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        functional.scaled_dot_product_attention = self._function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._function and not self._is_heard:
            self._hear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _within(self, *args: Any, **kwargs: Any) -> Any:
        self._hear(*args, **kwargs)
        self._is_heard = True
        try:
            return self._function(*args, **kwargs)
        finally:
            self._is_heard = False

    def _hear(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any
    ) -> None:
        device = query.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        size = query.shape[-1]
        fits_flash = dtype in _LOW and attn_mask is None and size <= _MOST_OF_FLASH and torch.backends.cuda.flash_sdp_enabled()
        fits_efficient = dtype != torch.float64 and torch.backends.cuda.mem_efficient_sdp_enabled()
        kernel = "flash" if fits_flash else "efficient" if fits_efficient else "math"
        inputs = f"{str(dtype).removeprefix('torch.')}, heads of {size}{', a mask' if attn_mask is not None else ''}"
        self.found[kernel, inputs] = self.found.get((kernel, inputs), 0) + 1

    def lines(self) -> list[str]:
        """A line for each kernel and inputs: how many there are in a micro-batch, and what is known of its cost."""
        flash = _flash()
        return [
            f"{count} × {flash if kernel == 'flash' else kernel} in a forward ({inputs}): {_COSTS[kernel]}"
            for (kernel, inputs), count in self.found.items()
        ]
