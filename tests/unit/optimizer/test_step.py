"""The rate is a function of the step, the optimizer's arguments are the class's own, and a start is quick."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, Workplace
from samestep.checkpoint import capture, restore
from samestep.config import Config, Schedule
from samestep.errors import UsageError
from samestep.optimizer.build import build_optimizer
from samestep.optimizer.schedules import rate_factor
from samestep.optimizer.step import GatedOptimizer
from samestep.task import Task


def test_warm_up_then_cosine_to_the_floor() -> None:
    schedule = Schedule(name="cosine", warmup=4, floor=0.1)
    factors = [rate_factor(schedule, step, 104) for step in range(105)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[54] == pytest.approx(0.55)
    assert factors[104] == pytest.approx(0.1)
    assert rate_factor(Schedule(name="linear"), 50, 100) == 0.5
    assert rate_factor(Schedule(), 99, 100) == 1.0


def gated(parameter: torch.nn.Parameter) -> GatedOptimizer:
    return GatedOptimizer(torch.optim.AdamW([parameter], lr=0.1, fused=True), Schedule(), 10, None)


ONE, NAN, INF = torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(float("inf"))


@pytest.mark.parametrize("on_device", [False, True], ids=["read by the host", "read by the fused kernel"])
@pytest.mark.parametrize(("loss", "norm"), [(NAN, ONE), (ONE, INF), (NAN, NAN)])
def test_a_step_that_is_not_finite_changes_nothing(on_device: bool, loss: torch.Tensor, norm: torch.Tensor) -> None:
    parameter, untouched = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, reference = gated(parameter), gated(untouched)
    optimizer._on_device = on_device  # as on a GPU, where nobody waits for the host
    for number, (a_loss, a_norm) in enumerate([(ONE, ONE), (loss, norm), (ONE, ONE)]):
        parameter.grad = torch.full((3,), 0.5)
        optimizer.step(number, a_loss, a_norm)
    for number in range(2):
        untouched.grad = torch.full((3,), 0.5)
        reference.step(number, ONE, ONE)
    assert optimizer.counted == reference.counted == 2
    assert torch.equal(parameter, untouched)


def test_under_fp16_an_overflow_counts_and_a_loss_that_did_not_arrive_does_not() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=1.0), Schedule(), 10, scaler)
    scales, values = [], []
    for number, (loss, grad) in enumerate([(ONE, 4.0), (NAN, 4.0), (ONE, float("inf")), (ONE, 1.0)]):
        scaler.scale(torch.ones(()))
        parameter.grad = torch.full((3,), grad)
        optimizer.unscale()
        optimizer.step(number, loss, parameter.grad.norm())
        scales.append(scaler.get_scale())
        values.append(parameter[0].item())
    assert values == [0.0, 0.0, 0.0, -1.0]
    assert scales == [4.0, 2.0, 1.0, 1.0]
    assert optimizer.counted == 3


def test_a_step_is_the_optimizers_own_to_the_bit() -> None:
    mine, theirs = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    optimizer, reference = gated(mine), torch.optim.AdamW([theirs], lr=0.1, fused=True)
    for step in range(5):
        mine.grad, theirs.grad = torch.arange(5.0) - step, torch.arange(5.0) - step
        optimizer.step(step, ONE, ONE)
        reference.step()
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("more", [{}, {"nesterov": True, "weight_decay": 0.01}])
def test_momentum_from_zeros_is_torchs_own_to_the_bit(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mine, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(mine.state_dict())
    words = {"task": "regression", "global_batch_size": 4, "micro_batch_size": 4, "steps": 1}
    config = Config.model_validate({**words, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, **more}})
    optimizer = build_optimizer(config, Task(), mine)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, fused=True, **more)
    for _ in range(5):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            one.grad = other.grad = torch.randn_like(one)
        optimizer.step()
        reference.step()
    assert all(torch.equal(one, other) for one, other in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1, "betas": [0.8, 0.9]}, {"maximize": True}])
def test_adam_sorted_once_is_torchs_own_to_the_bit(name: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Linear(16, 16)) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    words = {"task": "regression", "global_batch_size": 4, "micro_batch_size": 4, "steps": 1}
    config = Config.model_validate({**words, "optimizer": {"name": name, "lr": 0.1, **more}})
    inner = build_optimizer(config, Task(), mine)
    schedule = Schedule(name="linear")
    optimizer = GatedOptimizer(inner, schedule, 12, None, is_ours=True)
    reference = build_optimizer(config, Task(), theirs)
    for step in range(12):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            if step in (0, 5) and one.dim() == 1:  # a first gradient comes late, and one is left out
                one.grad = None
            other.grad = None if one.grad is None else one.grad.clone()
        optimizer._on_device = step > 6  # as on a GPU
        counts = step != 8
        optimizer.step(step, ONE if counts else NAN, ONE)
        reference.param_groups[0]["lr"] = 0.1 * rate_factor(schedule, step, 12)
        if counts:
            reference.step()
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
            for key, value in reference.state[other].items():
                assert torch.equal(inner.state[one][key], value)


def test_what_no_fused_step_serves_alike_for_every_cut_is_not_fused_on_a_cpu() -> None:
    assert pair({"name": "adam", "lr": 0.1})[1].defaults["fused"]
    for wanted in (
        {"name": "adamw", "lr": 0.1, "amsgrad": True},
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    ):
        assert not pair(wanted)[1].defaults["fused"]


class OfOwnOptimizer(Task):
    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, fused=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("more", [{}, {"momentum": 0.9}])
def test_sgd_of_16_bits_moves_weights_on_a_cpu(dtype: torch.dtype, more: dict[str, Any]) -> None:
    """torch's fused kernel does not, up to 2.13: of whole vectors it writes nothing."""
    config = Config(task="mine", global_batch_size=1, micro_batch_size=1, steps=9, optimizer={"name": "sgd", "lr": 0.5, **more})  # type: ignore[dict-item]
    model = torch.nn.Linear(64, 1, bias=False).to(dtype)
    before = model.weight.detach().clone()
    optimizer = GatedOptimizer(build_optimizer(config, Task(), model), Schedule(), 9, None, is_ours=True)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step(0, 1.0, 1.0)
    assert torch.equal(model.weight, before - 0.5)
    with pytest.raises(UsageError, match=r"fused SGD leaves parameters of 16 bits as they are on a CPU .*; write fused=False"):
        build_optimizer(config, OfOwnOptimizer(), model)
    build_optimizer(config, OfOwnOptimizer(), model, torch.device("cuda"))


def test_an_optimizers_own_zero_grad_is_asked_for_none() -> None:
    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none)

    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    GatedOptimizer(Own([parameter], lr=1.0), Schedule(), 10, None).zero_grad()
    assert parameter.grad is None


def test_hooks_on_the_optimizer_still_run() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([parameter], lr=1.0)
    called = []
    inner.register_step_post_hook(lambda *words: called.append(words))
    parameter.grad = torch.ones(1)
    GatedOptimizer(inner, Schedule(), 10, None).step(0, ONE, ONE)
    assert len(called) == 1


def test_a_run_does_not_import_dynamo(workplace: Workplace) -> None:
    code = (
        "import sys; from samestep.cli import cli\n"
        f"cli.main(['train', {str(ROOT / 'configs/seed.yaml')!r}, 'track.wandb=off'], standalone_mode=False)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace.path, env=workplace.env, check=False, timeout=200)
    assert done.returncode == 0


@pytest.mark.parametrize(("weight", "scale"), [(1, 65536.0), (32, 2048.0), (8192, 8.0), (6000, 8.0), (0.5, 65536.0)])
def test_fp16_starts_at_a_scale_that_suits_a_sum(weight: float, scale: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=1.0), Schedule(), 10, scaler)
    optimizer.fit_scale(weight / 4, micro_batches=4)
    assert scaler.scale(torch.ones(())).item() == scale
    optimizer.fit_scale(1e9, micro_batches=4)
    assert scaler.scale(torch.ones(())).item() == scale


def test_a_restored_scale_stays_as_it_was() -> None:
    before = torch.amp.GradScaler("cpu", init_scale=64.0)
    before.scale(torch.ones(()))
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(before.state_dict())
    optimizer = GatedOptimizer(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), Schedule(), 10, scaler, fresh=False
    )
    optimizer.fit_scale(8192, micro_batches=1)
    assert scaler.scale(torch.ones(())).item() == 64.0


def test_each_group_keeps_a_rate_of_its_own() -> None:
    slow, quick = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([slow], lr=1.0)
    inner.add_param_group({"params": [quick], "lr": 4.0})
    optimizer = GatedOptimizer(inner, Schedule(name="linear"), 10, None)
    for step in (2, 5):
        slow.grad = quick.grad = torch.ones(1)
        assert optimizer.step(step, ONE, ONE) == 1.0 - step / 10
    assert [group["lr"] for group in inner.param_groups] == [0.5, 2.0]


class Pair(Task):
    def model(self) -> torch.nn.Module:
        return torch.nn.ModuleDict({"left": torch.nn.Linear(2, 16), "right": torch.nn.Linear(16, 16)})


def pair(optimizer: dict[str, Any]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    tree = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "steps": 3, "optimizer": optimizer}
    torch.manual_seed(0)
    model = Pair().model()
    return model, build_optimizer(Config.model_validate(tree), Pair(), model)


def test_each_part_has_an_optimizer_of_its_own_and_a_checkpoint_holds_them_all() -> None:
    wanted = {"left": {"name": "adam", "lr": 0.1}, "right": {"name": "sgd", "lr": 0.2, "momentum": 0.9}}

    def stepped(model: torch.nn.Module, optimizer: Any, times: int) -> list[torch.Tensor]:
        for _ in range(times):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
            optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    model, optimizer = pair(wanted)
    alone, _ = pair(wanted)
    adam = torch.optim.Adam(alone["left"].parameters(), lr=0.1, fused=True)  # type: ignore[index]
    sgd = torch.optim.SGD(alone["right"].parameters(), lr=0.2, momentum=0.9, fused=True)  # type: ignore[index]
    both = type("Both", (), {"step": lambda self: (adam.step(), sgd.step())})()
    assert all(torch.equal(*two) for two in zip(stepped(model, optimizer, 4), stepped(alone, both, 4), strict=True))

    saved = capture(4, model, optimizer, None, {})
    again, restored = pair(wanted)
    restore(saved, again, restored)
    assert all(torch.equal(*two) for two in zip(stepped(again, restored, 3), stepped(model, optimizer, 3), strict=True))
    assert [group["lr"] for group in restored.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            {"left": {"name": "adam", "lr": 1.0}},
            "optimizer: no part has right.weight and 1 more; write an optimizer for right too",
        ),
        ({"lefd": {"name": "adam", "lr": 1.0}}, "optimizer.lefd: the model has no such part; write one of its modules: left"),
        (
            {"left": {"name": "adam", "lr": 1.0}, "right": {"name": "sgd", "lr": 1.0, "betas": 3}},
            "optimizer.right.betas: SGD takes no such argument; it takes ",
        ),
    ],
)
def test_parts_that_do_not_fit_the_model_are_told(optimizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        pair(optimizer)


def test_parts_in_another_order_are_the_same_optimizer() -> None:
    left, right = {"name": "adam", "lr": 0.1}, {"name": "adam", "lr": 0.2}
    orders = [pair({"left": left, "right": right})[1], pair({"right": right, "left": left})[1]]
    assert [[group["lr"] for group in optimizer.param_groups] for optimizer in orders] == [[0.1, 0.2]] * 2


def test_a_frozen_part_needs_no_optimizer_where_after_step_may_free_it() -> None:
    class Teacher(Pair):
        def model(self) -> torch.nn.Module:
            model = super().model()
            model["right"].requires_grad_(False)  # type: ignore[index]
            return model

        def after_step(self, model: torch.nn.Module, step: int) -> None: ...

    tree = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "steps": 3}
    config = Config.model_validate({**tree, "optimizer": {"left": {"name": "sgd", "lr": 1.0}}})
    assert len(build_optimizer(config, Teacher(), Teacher().model()).param_groups) == 1


def test_while_ones_own_rate_fails_the_weights_are_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def rate(step): return 1.0 if step in (1, 6, 10) else float('nan')\n")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=0.1), Schedule(name=f"{tmp_path}/mine.py:rate"), 10, None)
    parameter.grad = torch.ones(3)
    optimizer.step(0, ONE, ONE)
    with pytest.raises(UsageError, match="gives nan at step 2; return the part of lr"):
        optimizer.step(1, ONE, ONE)
    assert optimizer.hold(0.0)
    assert optimizer.counted == 1


def test_no_step_begins_once_somebody_else_holds_the_weights() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=0.1), Schedule(), 10, None)
    with optimizer.stepping():
        assert not optimizer.hold(0.01)
    assert optimizer.hold(0.01)
    parameter.grad = torch.ones(3)
    late = threading.Thread(target=lambda: optimizer.step(0, ONE, ONE), daemon=True)  # as a main thread that wakes up
    late.start()
    late.join(0.2)
    assert late.is_alive()
    assert torch.equal(parameter.detach(), torch.ones(3))
    optimizer._turn.release()
    late.join(20)
    assert not late.is_alive()
