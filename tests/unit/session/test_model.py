"""A model is a function of the config's seed, whichever generator it is drawn from."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn

from conftest import Workplace
from samestep import Task
from samestep.config import Config
from samestep.session.blocks import MOST_SHAPES, compile_blocks, recompute_blocks
from samestep.session.model import make_model


class Drawn(Task):
    def model(self) -> nn.Module:
        model = nn.Linear(2, 2)
        model.bias.data.copy_(torch.tensor([random.random(), float(np.random.rand())]))
        return model


def drawn(seed: int) -> list[float]:
    settings: dict[str, Any] = {"task": "drawn:Drawn", "global_batch_size": 1, "micro_batch_size": 1, "steps": 1}
    config = Config.model_validate({**settings, "seed": seed, "optimizer": {"name": "sgd", "lr": 1.0}})
    model, _ = make_model(config, Drawn(), torch.device("cpu"), is_fresh=True)
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).tolist()


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    first = drawn(1)
    assert drawn(1) == first
    assert all(one != other for one, other in zip(drawn(2), first, strict=True))


class Dropping(torch.nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.line = rate, torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.line(x) * (1 - self.rate)
        return out


class Stack(torch.nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Dropping(place / blocks) for place in range(blocks)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which dynamo looks at
@torch._dynamo.config.patch(optimize_ddp=True, fail_on_recompile_limit_hit=False)  # type: ignore[untyped-decorator]
@torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256)  # type: ignore[untyped-decorator]
def test_blocks_that_differ_in_a_plain_attribute_are_compiled_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a program of its own, of which dynamo allows eight unless it is told; beyond the limit it is an error."""
    torch._dynamo.reset()
    model = Stack(12)
    with monkeypatch.context() as quick:
        quick.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        compile_blocks(model)
    for training in (True, False):
        for rows in range(2, 2 + MOST_SHAPES):
            model.train(training)(torch.ones(rows, 4))
    for rows in range(20, 30):
        error = None
        try:
            model(torch.ones(rows, 4))
        except Exception as raised:
            error = raised
    assert type(error).__name__ == "FailOnRecompileLimitHit"
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of what inductor imports
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_copy_of_a_compiled_model_computes_with_weights_of_its_own(recomputes: bool) -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    compile_blocks(model)
    if recomputes:
        recompute_blocks(model)
    copied = copy.deepcopy(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for parameter in copied.parameters():
            parameter.zero_()
        (own, *_), (other, *_) = copied.children(), model.children()
        assert not own.get_submodule("0")(torch.ones(1, 2)).any()
        assert other.get_submodule("0")(torch.ones(1, 2)).any()
    if not recomputes:
        assert pickle.loads(pickle.dumps(model))


@pytest.mark.timeout(250)
def test_recompute_keeps_the_bits_of_compiled_blocks(workplace: Workplace) -> None:
    workplace.write(
        "case.yaml",
        "task: text\nwith: {context: 16, width: 24, layers: 2, heads: 2, shown: 0}\nglobal_batch_size: 4\nmicro_batch_size: 2\n"
        "steps: 2\nprecision: bf16\ncompile: true\noptimizer: {name: adamw, lr: 3e-3}\nevaluate: {batches: 1}\n"
        "track: {wandb: 'off'}\n",
    )
    kept = workplace.train("case.yaml", "--run", "kept")
    assert workplace.train("case.yaml", "--run", "again", "recompute=true").weights == kept.weights
