"""Where a plain loop's time goes on one GPU, thing by thing, in one process and in turns: called by `bench/gpu.py`.

    python bench/ablation.py [--tiny] [--minutes N]

A line of JSON a figure: milliseconds by the clock, and what the profiler's kernels took in all. On a CPU, --tiny, operators
stand for kernels and nothing for inductor: to see that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from samestep.exact import norm
from samestep.session.blocks import compile_blocks
from samestep.tasks.gpt import GPT

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")


@dataclass(frozen=True)
class Case:
    """A way to take a step. `sdp` are the attention kernels that are allowed; `inductor` are its switches."""

    name: str
    sdp: tuple[str, ...] = ("cudnn", "flash", "mem_efficient", "math")
    deterministic: str = ""  # "all" of torch's, or "aten": its kernels, and not inductor's
    compiled: str = ""  # "blocks" or "whole"
    mode: str | None = None
    inductor: dict[str, Any] = field(default_factory=dict)


_FLASH = ("flash", "math")
CASES = [
    Case("plain"),
    Case("flash", _FLASH),
    Case("flash, deterministic", _FLASH, "all"),
    Case("blocks", compiled="blocks"),
    Case("blocks, flash", _FLASH, compiled="blocks"),
    Case("blocks, flash, ATen's switch", _FLASH, "aten", compiled="blocks"),
    Case("blocks, deterministic", _FLASH, "all", compiled="blocks"),
    Case("blocks, no mix-order", _FLASH, "all", compiled="blocks", inductor={"triton.mix_order_reduction": False}),
    Case("blocks, reduce-overhead", _FLASH, "all", compiled="blocks", mode="reduce-overhead"),
    Case("whole", compiled="whole"),
    Case("whole, deterministic", _FLASH, "all", compiled="whole"),
]


@contextlib.contextmanager
def as_said(case: Case) -> Iterator[None]:
    """Inside, torch's switches are the case's."""
    for kernel in ("cudnn", "flash", "mem_efficient", "math"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel in case.sdp)
    torch.use_deterministic_algorithms(case.deterministic == "all")
    if case.deterministic == "aten":
        torch._C._set_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def wait() -> None:
    if IS_CUDA:
        torch.cuda.synchronize()


def in_kernels(work: Callable[[], object], times: int) -> float:
    """Milliseconds that kernels took, of one `work`; operators' own on a CPU."""
    with profile(activities=[ProfilerActivity.CUDA if IS_CUDA else ProfilerActivity.CPU]) as found:
        for _ in range(times):
            work()
        wait()
    own = "self_device_time_total" if IS_CUDA else "self_cpu_time_total"
    return float(sum(getattr(entry, own) for entry in found.key_averages())) / 1e3 / times


def by_the_clock(work: Callable[[], object], times: int) -> float:
    wait()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - begun) * 1e3 / times


class Loop:
    """The step of a reader's loop, in one of the ways."""

    def __init__(self, case: Case, sizes: dict[str, int], rows: int) -> None:
        self._case = case
        torch.manual_seed(0)
        model = GPT(dropout=0.0, **sizes).to(DEVICE)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self._model, self._train_on = model, self._compiled(model)
        self._tokens = torch.randint(256, (rows, sizes["context"] + 1), device=DEVICE)

    def _compiled(self, model: torch.nn.Module) -> Any:
        """With a backend of the case's own: dynamo would take another case's program, as it knows of no attention kernels."""
        if self._case.compiled == "whole":
            return torch.compile(model, dynamic=False, backend=self._backend)
        if self._case.compiled == "blocks":
            compile = torch.compile
            with mock.patch.object(torch, "compile", lambda given, **words: compile(given, backend=self._backend, **words)):
                compile_blocks(model)
        return model

    def _backend(self, graph: Any, inputs: Any) -> Any:
        if not IS_CUDA:
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(self._case.mode) if self._case.mode else {}), **self._case.inductor}
        return compile_fx(graph, inputs, config_patches={**patches, "deterministic": self._case.deterministic == "all"})

    def step(self) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = self._train_on(self._tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), self._tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def in_its_way(self, work: Callable[[], float]) -> float:
        with as_said(self._case):
            return work()


def say(name: str, wall: float | str, kernels: float = 0.0, **more: Any) -> None:
    figures = {"said": wall} if isinstance(wall, str) else {"wall": round(wall, 4), "kernels": round(kernels, 4)}
    print(json.dumps({"name": name, **figures, **more}), flush=True)


@contextlib.contextmanager
def said(name: str, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What fails inside is a figure that says so, and the others are taken all the same."""
    try:
        yield
    except Exception as error:
        say(name, f"failed: {type(error).__name__}: {(str(error) or 'no words').splitlines()[0][:200]}")
        then()


def steps(tiny: bool, until: float) -> None:
    """Each case warmed up, then all of them in turns; a case that fails, or comes too late, says so."""
    sizes = (
        {"context": 64, "width": 64, "layers": 2, "heads": 2}
        if tiny
        else {"context": 1024, "width": 768, "layers": 12, "heads": 12}
    )
    loops: dict[str, Loop] = {}
    for case in CASES:
        if time.monotonic() > until:
            say(case.name, "left out: no time")
            continue
        with said(case.name):
            loop = Loop(case, sizes, 2 if tiny else 16)
            loop.in_its_way(functools.partial(by_the_clock, loop.step, 3))
            loops[case.name] = loop
    rounds, times = (1, 2) if tiny else (3, 10)
    walls: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in list(loops.items()):
            with said(name, functools.partial(loops.pop, name)):
                walls[name].append(loop.in_its_way(functools.partial(by_the_clock, loop.step, times)))
    for name, loop in loops.items():
        with said(name):
            kernels = loop.in_its_way(functools.partial(in_kernels, loop.step, 2))
            say(name, statistics.median(walls[name]), kernels, of=[round(wall, 3) for wall in walls[name]])


def attention(tiny: bool) -> None:
    """One attention's forward and backward at the model's shape, and whether twenty of them are the same bits."""
    rows, heads, length, size = (2, 2, 64, 16) if tiny else (16, 12, 1024, 64)
    query, key, value = (torch.randn(rows, heads, length, size, device=DEVICE).bfloat16().requires_grad_() for _ in range(3))

    def of(cuts: list[slice]) -> Callable[[], list[torch.Tensor]]:
        def work() -> list[torch.Tensor]:
            parts = [F.scaled_dot_product_attention(query[cut], key[cut], value[cut], is_causal=True) for cut in cuts]
            return list(torch.autograd.grad(torch.cat(parts).float().sum(), (query, key, value)))

        return work

    whole, split = [slice(None)], [slice(0, 11), slice(11, None)] if not tiny else [slice(0, 1), slice(1, None)]
    ways = [
        ("plain", Case(""), whole),
        ("flash", Case("", _FLASH), whole),
        ("flash, deterministic", Case("", _FLASH, "all"), whole),
        ("efficient, deterministic", Case("", ("mem_efficient",), "all"), whole),
        ("split 11 and 5", Case("", _FLASH, "all"), split),
    ]
    for name, case, cuts in ways:
        work = of(cuts)
        with said(f"attention: {name}"), as_said(case):
            by_the_clock(work, 3)
            wall, kernels = by_the_clock(work, 5 if tiny else 50), in_kernels(work, 5)
            first = work()
            same = all(all(map(torch.equal, work(), first)) for _ in range(20))
            say(f"attention: {name}", wall, kernels, same_bits=same)


@torch.no_grad()
def norm_and_division(tiny: bool) -> None:
    """The norm without Triton and with it; the fused step with a division before it and within, and if its bits part."""
    width, layers = (64, 2) if tiny else (768, 12)
    shapes = [(4 * width, width), (width, 4 * width), (3 * width, width), (width, width), (width,), (width,)] * layers
    grads = [torch.randn(shape, device=DEVICE) for shape in shapes]

    def take() -> float:
        return float(norm.total_norm(grads))

    kernels = norm._kernels
    for way in ("by halves", "in one pass"):
        with mock.patch.multiple(norm, _on_host=lambda _: False, _kernels=kernels if way == "in one pass" else lambda: None):
            if way in norm.norm_way():
                value = take()
                say(f"norm: {way}", by_the_clock(take, 5), in_kernels(take, 3), norm=value)
            else:
                say(f"norm: {way}", "left out: Triton does not run here")
    ends = [_divided(shapes, before) for before in (True, False)]
    say("step: the bits of dividing before and within", "the same" if all(map(torch.equal, *ends)) else "OTHERS")


def _divided(shapes: list[tuple[int, ...]], before: bool) -> list[torch.Tensor]:
    """What an AdamW step leaves of parameters, gradients and moments."""
    torch.manual_seed(0)
    lists = [[torch.randn(shape, device=DEVICE) for shape in shapes] for _ in range(4)]
    parameters, gradients, averages, squares = lists
    torch._foreach_abs_(squares)
    divisor, counts = torch.tensor(16384.3, device=DEVICE), [torch.ones((), device=DEVICE) for _ in shapes]

    def work() -> None:
        if before:
            torch._foreach_div_(gradients, divisor)
        torch._fused_adamw_(
            parameters, gradients, averages, squares, [], counts, amsgrad=False, lr=1e-3, beta1=0.9, beta2=0.95,
            weight_decay=0.1, eps=1e-8, maximize=False, grad_scale=None if before else divisor, found_inf=None,
        )  # fmt: skip

    work()
    end = [tensor.clone() for tensors in lists for tensor in tensors]
    say(f"step: divided {'before' if before else 'within'}", by_the_clock(work, 5), in_kernels(work, 3))
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too")
    parser.add_argument("--minutes", type=float, default=3.5, help="begin no further way to take a step after that")
    words = parser.parse_args()
    until = time.monotonic() + 60 * words.minutes
    with said("steps"):
        steps(words.tiny, until)
    with said("attention"):
        attention(words.tiny)
    with said("the norm and the division"):
        norm_and_division(words.tiny)


if __name__ == "__main__":
    main()
