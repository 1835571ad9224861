"""The layers that a drawn task is stacked from: each takes and gives (rows, 12), and looks at it as the shape it needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

WIDTH = 12


class Shaped(nn.Module):
    """A layer of torch's that sees its rows as `shape`; half of the input goes past it, so that the stack keeps a gradient."""

    def __init__(self, inner: nn.Module, *shape: int) -> None:
        super().__init__()
        self.inner, self.shape = inner, shape

    def call(self, x: torch.Tensor) -> torch.Tensor:
        found = self.inner(x)
        out: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.call(x.reshape(len(x), *self.shape))
        return x * 0.5 + out.reshape(len(x), -1)


class Attention(Shaped):
    def call(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class ChannelsLast(Shaped):
    def call(self, x: torch.Tensor) -> torch.Tensor:
        return super().call(x.to(memory_format=torch.channels_last)).contiguous()


class Checkpointed(Shaped):
    def call(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


class Sometimes(Shaped):
    """A layer that only some micro-batches use."""

    def call(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) if x.detach().float().mean() > 0 else torch.zeros_like(x)
        return out


class Doubled(Shaped):
    """A layer that computes in another type than the rest."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH).to(dtype), WIDTH)

    def call(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.inner(x.to(next(self.inner.parameters()).dtype)).to(x.dtype)  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.outward.weight = self.inward.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 + self.outward(torch.tanh(self.inward(x)))  # type: ignore[no-any-return]


class Looked(nn.Module):
    """An embedding of where each number falls."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.table = kind(7, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.bucketize(x.detach().float(), torch.linspace(-1, 1, 6))
        found = self.table(places)
        mean: torch.Tensor = found if found.dim() == 2 else found.mean(1)
        return x * 0.5 + mean.to(x.dtype)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(5, 7, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x[:, :5].contiguous(), x[:, 5:].contiguous())  # type: ignore[no-any-return]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x.float() * self.turn).abs().to(x.dtype)


class Noisy(nn.Module):
    """Draws from torch's, numpy's and Python's own generators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x + 0.01 * torch.randn_like(x) * (np.random.rand() + random.random())


class Routed(nn.Module):
    """Two experts, each for the rows that choose it; one of them may get none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x * 0.5
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == bool(number)).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]).to(out.dtype))
        return out


class Block(nn.Module):
    """What is repeated in a list, and gathered as a whole where the model is sharded."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.inner = nn.Sequential(norm(WIDTH), nn.Linear(WIDTH, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * self.inner(x)  # type: ignore[no-any-return]


class Repeated(nn.Module):
    """Blocks in a list; of the uneven ones the first is as wide as three of the others."""

    def __init__(self, *widths: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, norm) for width in widths])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Skipping(Repeated):
    """Blocks of which some micro-batches pass by the last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = x.detach().float().mean() > 0
        for block in list(self.blocks)[: -1 if skips else None]:
            x = block(x)
        return x


class Odd(nn.Module):
    """Parameters of no dimension, of no elements, in a list, and one that is a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.nothing = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.empty(0, 3))
        self.shifts = nn.ParameterList([nn.Parameter(torch.randn(WIDTH)) for _ in range(2)])
        self.turned = nn.Parameter(torch.randn(WIDTH, 5).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x * self.scale + self.shifts[0] * 0.1 + (x @ self.turned.t()).sum(1, keepdim=True) * 0.1
        return out


class Hooked(Shaped):
    """A forward hook that changes what its layer gives."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), WIDTH)
        self.inner.register_forward_hook(lambda module, args, out: torch.sigmoid(out))


class Counter(nn.Module):
    """An integer buffer that counts forwards: no pure forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return x * (1 + 0.5 * (self.seen % 3).to(x.dtype))


class Averaging(nn.Module):
    """A float buffer that follows what comes by: no pure forward."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().float().mean(0), 0.1)
        return x - self.mean.to(x.dtype)


class Remembering(nn.Module):
    """An attribute that changes with every forward: no pure forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return x * (1 + 0.5 * (self.calls % 3))


class Late(nn.Module):
    """A buffer made by the first forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "shift"):
            self.register_buffer("shift", x.detach().float().mean(0))
        return x - self.shift.to(x.dtype)  # type: ignore[operator]


class Rotary(nn.Module):
    """Buffers that no forward changes: floats whose average would not be themselves, integers and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor
        self.order: torch.Tensor
        self.mask: torch.Tensor
        self.register_buffer("table", torch.rand(WIDTH) / 3)
        self.register_buffer("order", torch.randperm(WIDTH))
        self.register_buffer("mask", torch.rand(WIDTH) > 0.2, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.table.to(x.dtype))[:, self.order] * self.mask


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def in_channels_last(module: nn.Conv2d) -> nn.Module:
    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def pruned() -> nn.Module:
    inner = nn.Linear(WIDTH, WIDTH)
    prune.random_unstructured(inner, "weight", amount=0.3)
    return Shaped(inner, WIDTH)


def square() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 9, dropout=0.1, batch_first=True)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Shaped(nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, WIDTH, bias=False)), WIDTH),
    "wide": lambda: Shaped(nn.Sequential(nn.Linear(WIDTH, 129), nn.ReLU(), nn.Linear(129, WIDTH)), WIDTH),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
    "batch_norm_2d": lambda: Shaped(nn.BatchNorm2d(3), 3, 2, 2),
    "batch_norm_mean": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "batch_norm_plain": lambda: nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False),
    "frozen_norm": lambda: frozen(nn.BatchNorm1d(WIDTH)).eval(),
    "group_norm": lambda: Shaped(nn.GroupNorm(2, 4), 4, 3),
    "rms_norm": lambda: nn.RMSNorm(WIDTH),
    "instance_norm": lambda: Shaped(nn.InstanceNorm1d(3, affine=True), 3, 4),
    "tracked_instance_norm": lambda: Shaped(nn.InstanceNorm1d(3, track_running_stats=True), 3, 4),
    "spectral_norm": lambda: Shaped(parametrizations.spectral_norm(square()), WIDTH),
    "dropout": lambda: nn.Dropout(0.2),
    "alpha_dropout": lambda: nn.AlphaDropout(0.1),
    "channel_dropout": lambda: Shaped(nn.Dropout1d(0.3), 3, 4),
    "gelu": lambda: Shaped(nn.GELU(), WIDTH),
    "silu": lambda: nn.SiLU(),
    "rrelu": lambda: nn.RReLU(),
    "prelu": lambda: nn.PReLU(WIDTH),
    "lstm": lambda: Shaped(nn.LSTM(3, 3, 2, dropout=0.2, batch_first=True), 4, 3),
    "gru": lambda: Shaped(nn.GRU(3, 3, batch_first=True), 4, 3),
    "rnn": lambda: Shaped(nn.RNN(4, 4, batch_first=True), 3, 4),
    "attention": lambda: Attention(nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), 3, 4),
    "encoder": lambda: Shaped(encoder(), 3, 4),
    "conv1d": lambda: Shaped(nn.Conv1d(3, 3, 3, padding=1), 3, 4),
    "conv2d": lambda: Shaped(nn.Conv2d(3, 3, 3, padding=1, groups=3), 3, 2, 2),
    "channels_last": lambda: ChannelsLast(in_channels_last(nn.Conv2d(3, 3, 2, padding="same")), 3, 2, 2),
    "transposed": lambda: Shaped(nn.Sequential(nn.ConvTranspose1d(3, 3, 3), nn.AdaptiveAvgPool1d(4)), 3, 4),
    "pooled": lambda: Shaped(nn.Sequential(nn.Conv1d(3, 12, 1), nn.MaxPool1d(4)), 3, 4),
    "embedding": lambda: Looked(nn.Embedding),
    "bag": lambda: Looked(nn.EmbeddingBag),
    "tied": Tied,
    "frozen": lambda: Shaped(frozen(square()), WIDTH),
    "unused": Unused,
    "sometimes": lambda: Sometimes(square(), WIDTH),
    "weight_norm": lambda: Shaped(parametrizations.weight_norm(square()), WIDTH),
    "orthogonal": lambda: Shaped(parametrizations.orthogonal(square(), use_trivialization=False), WIDTH),
    "pruned": pruned,
    "bilinear": Bilinear,
    "checkpointed": lambda: Checkpointed(nn.Sequential(square(), nn.GELU(), nn.Dropout(0.2)), WIDTH),
    "double": lambda: Doubled(torch.float64),
    "bf16": lambda: Doubled(torch.bfloat16),
    "complex": Complex,
    "noisy": Noisy,
    "routed": Routed,
    "blocks": lambda: Repeated(7, 7, 7),
    "uneven_blocks": lambda: Repeated(33, 11),
    "norm_blocks": lambda: Repeated(5, 5, norm=nn.BatchNorm1d),
    "skipping": lambda: Skipping(7, 7, 7),
    "odd": Odd,
    "hooked": Hooked,
    "rotary": Rotary,
    "counter": Counter,
    "averaging": lambda: Averaging(True),
    "hidden_averaging": lambda: Averaging(False),
    "remembering": Remembering,
    "late": Late,
}


def make(name: str) -> nn.Module:
    return PARTS[name]()


def as_rows(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whatever a column holds as (rows, 12) numbers near one."""
    flat = values.reshape(len(values), -1).to(dtype)
    return F.pad(flat, (0, WIDTH - flat.shape[1])) if flat.shape[1] < WIDTH else flat[:, :WIDTH]


Row = dict[str, Any]
