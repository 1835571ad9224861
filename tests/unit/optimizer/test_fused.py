"""A step gives each number the same bits, however its tensor is cut into ranges of rows; the fused ones are torch's own."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.checkpoint import capture, restore
from samestep.config import Config
from samestep.optimizer.build import build_optimizer
from samestep.optimizer.fused import FusedStep
from samestep.session.sharding import _against
from samestep.task import Task

SHAPES = [(10007, 1), (37, 13), (41, 3, 3, 3), (1009,), (64, 32), (1, 10)]
SIZES = [1.0, 1e-3, 10.0, 1e-6, 1.0]  # of the gradients of each step
ADAM: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
SGD: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1}
FUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, ADAM),
    "adamw": (torch.optim.AdamW, ADAM),
    "adamw, maximize": (torch.optim.AdamW, {**ADAM, "maximize": True}),
    "sgd": (torch.optim.SGD, SGD),
    "sgd, momentum": (torch.optim.SGD, {**SGD, "momentum": 0.9}),
    "sgd, nesterov, maximize": (torch.optim.SGD, {**SGD, "momentum": 0.9, "nesterov": True, "maximize": True}),
}
ELEMENTWISE: dict[str, dict[str, Any]] = {
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adadelta": {},
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9, "dampening": 0.5},
}

Make = Callable[[list[torch.nn.Parameter]], Callable[[], object]]


def fused(name: str) -> Make:
    optimizer_class, arguments = FUSED[name]

    def make(parameters: list[torch.nn.Parameter]) -> Callable[[], object]:
        optimizer = optimizer_class(parameters, fused=True, **arguments)
        assert FusedStep.fits(optimizer)
        return FusedStep(optimizer)

    return make


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@functools.cache
def tensors(dtype: torch.dtype, seed: int, size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * size).to(dtype) for shape in SHAPES]


@torch.no_grad()
def stepped(make: Make, ways: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """All tensors after some steps, each cut into as many ranges of rows; every range's optimizer is its own."""
    found: list[list[torch.Tensor]] = [[] for _ in SHAPES]
    for way in range(ways):

        def part(tensor: torch.Tensor, way: int = way) -> torch.Tensor:
            size = -(-len(tensor) // ways)
            return tensor[way * size : (way + 1) * size].clone()  # which starts its own memory

        parameters = [torch.nn.Parameter(part(tensor)) for tensor in tensors(dtype, 0)]
        step = make(parameters)
        for number, size in enumerate(SIZES):
            for parameter, grad in zip(parameters, tensors(dtype, 1 + number, size), strict=True):
                parameter.grad = part(grad)
            step()
        for place, parameter in enumerate(parameters):
            found[place].append(parameter.detach())
    return [torch.cat(parts) for parts in found]


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


DTYPES = [torch.float32, torch.float64, torch.bfloat16]
OF_EACH_DTYPE = [(name, dtype) for name in FUSED for dtype in DTYPES if "adam" in name or dtype.itemsize > 2]  # SGD's is broken


@pytest.mark.parametrize(("name", "dtype"), OF_EACH_DTYPE)
def test_no_cut_and_no_number_of_threads_changes_a_fused_step(name: str, dtype: torch.dtype, threads: Any) -> None:
    threads(1)
    whole = stepped(fused(name), 1, dtype)
    assert all(tensor.isfinite().all() for tensor in whole)
    for number, ways in itertools.product((1, 2), (1, 2, 3, 5, 7)):
        threads(number)
        assert all(map(torch.equal, stepped(fused(name), ways, dtype), whole))


@torch.no_grad()
def divided(name: str, dtype: torch.dtype, shapes: list[tuple[int, ...]], apart: bool, gate: bool) -> list[torch.Tensor]:
    """Parameters, gradients and moments after some steps, each by another divisor: before the step, or within it."""
    optimizer_class, arguments = FUSED[name]
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]
    optimizer = optimizer_class(parameters, fused=True, **arguments)
    step = FusedStep(optimizer)
    for divisor in (3.0, 16384.0, 0.1, 16777217.0, 12345.678, 1e-4):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(dtype) * divisor
        by = torch.tensor(divisor, dtype=torch.float64)
        if gate:
            optimizer.found_inf = torch.zeros(())
        if apart:
            torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], by)
        else:
            step.divisor = by
        step()
    found: list[Any] = [*parameters, *(parameter.grad for parameter in parameters)]
    return found + [
        value for entries in optimizer.state.values() for value in entries.values() if isinstance(value, torch.Tensor)
    ]


WHOLE_LINES, OTHERS = [(64, 32), (16,), (5, 3, 16)], [(64, 32), (10007,), (7, 3)]


@pytest.mark.parametrize("gate", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("shapes", [WHOLE_LINES, OTHERS], ids=["whole lines", "others too"])
@pytest.mark.parametrize(("name", "dtype"), OF_EACH_DTYPE)
def test_dividing_within_the_step_gives_the_bits_of_dividing_before_it(
    name: str, dtype: torch.dtype, shapes: list[tuple[int, ...]], gate: bool
) -> None:
    before, within = (divided(name, dtype, shapes, apart, gate) for apart in (True, False))
    assert all(map(torch.equal, within, before))


def test_of_whole_lines_a_step_divides_in_its_own_kernel() -> None:
    with Operators() as operators:
        divided("adamw", torch.float32, WHOLE_LINES, apart=False, gate=False)
    assert not [name for name in operators.counts if "div" in name]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_no_cut_changes_what_goes_element_by_element(name: str, foreach: bool, threads: Any) -> None:
    def make(parameters: list[torch.nn.Parameter]) -> Callable[[], object]:
        made: torch.optim.Optimizer = getattr(torch.optim, name)(
            parameters, weight_decay=0.1, foreach=foreach, **ELEMENTWISE[name]
        )
        return made.step

    whole = stepped(make, 1)
    for number, ways in itertools.product((1, 2), (1, 2, 3, 5, 7)):
        threads(number)
        assert all(map(torch.equal, stepped(make, ways), whole))


@torch.no_grad()
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_is_torchs_own_on_tensors_that_zeros_fill_up(name: str) -> None:
    optimizer_class, arguments = FUSED[name]

    def full(tensor: torch.Tensor) -> torch.Tensor:
        return pad(tensor.flatten(), (0, -tensor.numel() % 16))

    mine = [torch.nn.Parameter(tensor.clone()) for tensor in tensors(torch.float32, 0)]
    theirs = [torch.nn.Parameter(full(tensor)) for tensor in mine]
    optimizer, reference = (optimizer_class(each, fused=True, **arguments) for each in (mine, theirs))
    if arguments.get("momentum"):  # as `build_optimizer` makes it
        for parameter in (*mine, *theirs):
            (optimizer if parameter in set(mine) else reference).state[parameter]["momentum_buffer"] = torch.zeros_like(
                parameter
            )
    step = FusedStep(optimizer)
    for number in range(8):
        for place, (one, other, grad) in enumerate(zip(mine, theirs, tensors(torch.float32, 1 + number), strict=True)):
            is_left_out = place == 5 or (place in (0, 4) and number in (0, 3, 4))
            one.grad = None if is_left_out else grad
            other.grad = None if is_left_out else full(grad)
        for each in (optimizer, reference):
            each.found_inf = torch.tensor(float(number == 6))  # as a GPU says that none counts
        step()
        reference.step()
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(full(one), other)
            assert {key: tuple(value.shape) for key, value in optimizer.state.get(one, {}).items()} == {
                key: () if key == "step" else tuple(one.shape) for key in reference.state.get(other, {})
            }
            for key, value in reference.state.get(other, {}).items():
                assert torch.equal(full(optimizer.state[one][key])[: value.numel()], value.flatten())
    assert (mine[5] in optimizer.state) == bool(arguments.get("momentum"))  # which no step has made


def test_gradients_and_weights_in_another_order_of_memory_are_stepped_as_in_any() -> None:
    found = []
    for number, layout in enumerate([torch.contiguous_format, torch.channels_last, torch.channels_last]):
        values = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        parameter = torch.nn.Parameter(values)
        step = FusedStep(torch.optim.AdamW([parameter], fused=True, **ADAM))
        for size in SIZES:
            parameter.grad = values * size if number < 2 else (values * size).contiguous()
            with torch.no_grad():
                step()
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_two_parameters_of_one_memory_are_both_stepped() -> None:
    one = torch.nn.Parameter(torch.ones(3))
    other = torch.nn.Parameter(one.data)
    one.grad, other.grad = torch.ones(3), torch.ones(3)
    with torch.no_grad():
        FusedStep(torch.optim.SGD([one, other], lr=0.25, fused=True))()
    assert one.tolist() == other.tolist() == [0.5] * 3


@pytest.mark.parametrize("wanted", [{"name": "adamw", "lr": 0.1}, {"name": "sgd", "lr": 0.1, "momentum": 0.9}])
def test_a_restored_state_goes_on_as_if_nothing_had_been(wanted: dict[str, Any]) -> None:
    def begun() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 16, 2).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        tree = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "steps": 3, "optimizer": wanted}
        return model, build_optimizer(Config.model_validate(tree), Task(), model)

    @torch.no_grad()
    def go(model: torch.nn.Module, step: FusedStep, steps: range) -> None:
        for number in steps:
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
            step()

    model, optimizer = begun()
    go(model, FusedStep(optimizer), range(6))
    first, its_optimizer = begun()
    go(first, FusedStep(its_optimizer), range(3))
    again, restored = begun()
    step = FusedStep(restored)
    go(again, step, range(50, 52))  # a state that the checkpoint replaces
    restore(capture(3, first, its_optimizer, None, {}), again, restored)
    go(again, step, range(3, 6))
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert restored.state[one].keys() == optimizer.state[other].keys()
        assert all(torch.equal(value, optimizer.state[other][key]) for key, value in restored.state[one].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_only_a_fused_step_of_16_bits_may_be_cut(name: str, dtype: torch.dtype) -> None:
    optimizer = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(3, 5, dtype=dtype))], **ELEMENTWISE[name])
    (line,) = _against(optimizer, is_ours=True)
    assert line.startswith(f"shard: {name} without a fused kernel rounds parameters of 16 bits by their place; write adamw")
    fused_one = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, 5, dtype=dtype))], fused=True)
    assert not _against(fused_one, is_ours=True)
