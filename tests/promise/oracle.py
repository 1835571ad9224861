"""What a run has to come to: one process, one plain loop, written from the contract and apart from the product's code.

Only the order of rows and the words that seed the generators are the product's own, for the same random numbers must be
drawn. Everything else is said again here in the plainest way: no hooks, no wrapper, nothing saved and nothing resumed.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import drawn_task
import numpy as np
import safetensors.torch
import torch
from torch import nn

from samestep.randomness.mixing import mix
from samestep.randomness.order import Draws
from samestep.randomness.seeding import seed_all
from samestep.session.blocks import compile_blocks
from samestep.sources import order_of
from samestep.task import Task

LOADING, EVALUATING, STEPPING, AFTER_STEP, READING = range(1, 6)  # what else draws random numbers, each from its own words

Tensors = dict[Any, torch.Tensor]


class Diverged(Exception):
    """A step's loss or norm is not finite: the run ends there, with the weights before it."""


def tree(leaves: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """Pairs, pairs of pairs, …; what is left over on the right joins last."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return add(tree(leaves[:half], add), tree(leaves[half:], add))


def tree_of_tensors(leaves: list[Tensors]) -> Tensors:
    """Over dictionaries; what a leaf lacks is zero in it."""

    def add(left: Tensors, right: Tensors) -> Tensors:
        nothing = {key: torch.zeros_like(value) for key, value in (left | right).items()}
        return {key: left.get(key, zero) + right.get(key, zero) for key, zero in nothing.items()}

    total: Tensors = tree(leaves, add)
    return total


def tree_of_pairs(pairs: list[tuple[Any, Any]]) -> tuple[float, float]:
    """Over (sum, weight), in float64."""
    plain = [(float(total), float(weight)) for total, weight in pairs]
    found: tuple[float, float] = tree(plain, lambda left, right: (left[0] + right[0], left[1] + right[1]))
    return found


def digest(state: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().contiguous()
        found.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def as_steps(length: Any, per_epoch: int, steps: int) -> int:
    """The nearest number of steps, at least one: of `N epochs`, or of a part of the run."""
    if isinstance(length, str):
        return max(1, round(float(length.split()[0]) * per_epoch))
    return max(1, round(length * steps)) if isinstance(length, float) else int(length)


def rate_factor(schedule: dict[str, Any], step: int, steps: int, judged: list[float], per_epoch: int = 1) -> float:
    """Warm-up in equal parts to the whole rate, then down to `floor` of it; `step` counts from 0.

    Args:
        judged: what the evaluations so far came to, by the metric that the rate goes by.
    """
    length = functools.partial(as_steps, per_epoch=per_epoch, steps=steps)
    warmup, floor = length(schedule.get("warmup", 0)), schedule.get("floor", 0.0)
    match schedule.get("name"):
        case "drawn_task.py:waves":
            return drawn_task.waves(step + 1)
        case "drawn_task.py:falling":
            return drawn_task.falling(step + 1, steps)
        case "onecycle":
            up = warmup or max(1, round(0.3 * steps))
            if step < up:
                return float(0.04 + 0.96 * (1 - math.cos(math.pi * step / up)) / 2)
            return float(floor + (1 - floor) * ((1 + math.cos(math.pi * ((step - up) / max(1, steps - up)))) / 2))
        case "wsd" if step >= warmup:
            down = max(warmup, steps - length(schedule.get("decay", max(1, round(0.1 * steps)))))
            gone = max(0, step - down) / max(1, steps - down)
            return 1.0 if step < down else float(floor + (1 - floor) * (1 - gone))
    if step < warmup:
        return float((step + 1) / warmup)
    way = (step - warmup) / max(1, steps - warmup)
    match schedule.get("name", "constant"):
        case "linear":
            return float(floor + (1 - floor) * (1 - way))
        case "cosine":
            return float(floor + (1 - floor) * ((1 + math.cos(math.pi * way)) / 2))
        case "step":
            every = length(schedule["every"]) if "every" in schedule else None
            places = range(every, step + 1, every) if every else [length(place) for place in schedule["at"]]
            return float(max(floor, math.pow(schedule.get("factor", 0.1), len([place for place in places if place <= step]))))
        case "exponential":
            return float(max(floor, math.pow(schedule["factor"], step / length(schedule.get("every", 1)))))
        case "inverse_sqrt":
            return float(max(floor, math.sqrt(max(warmup, 1) / (step + 1))))
        case "restarts":
            lengths = [length(schedule["every"])]
            while warmup + sum(lengths) <= step:
                lengths.append(lengths[-1] * schedule.get("growth", 1))
            way = (step - warmup - sum(lengths[:-1])) / lengths[-1]
            return float(floor + (1 - floor) * ((1 + math.cos(math.pi * way)) / 2))
        case "plateau":
            return float(max(floor, math.pow(schedule.get("factor", 0.1), falls(schedule, judged))))
    return 1.0


def falls(schedule: dict[str, Any], judged: list[float]) -> int:
    """How often more than `patience` evaluations in a row have come to nothing better than the best before them."""
    best, row, found = math.inf, 0, 0
    for value in judged:
        lower = -value if schedule.get("goal") == "max" else value
        best, row = (lower, 0) if lower < best - schedule.get("min_delta", 0.0) else (best, row + 1)
        if row > schedule["patience"]:
            row, found = 0, found + 1
    return found


def as_rows(found: Any) -> Any:
    """What data() gave, as rows by number: of columns in memory the data set that they were made with."""
    return found.drawn if isinstance(found, dict) else found  # type: ignore[attr-defined]


class Reader:
    """Rows as `dataset[i]` gives them, in the dtype that their column has, as micro-batches."""

    def __init__(self, task: Task, dataset: Any, seed: int, floats: torch.dtype) -> None:
        self.task, self.dataset, self.seed, self.floats = task, dataset, seed, floats
        drawn = getattr(dataset, "drawn", dataset)
        self.found = Mixture(drawn) if isinstance(drawn, list) else Typed(drawn)

    def read(self, numbers: list[int], epoch: int) -> dict[str, torch.Tensor]:
        rows = []
        for number in numbers:
            row = self.found[number]
            rng = np.random.Generator(np.random.Philox(mix(self.seed, epoch, number)))
            rows.append(self.task.transform(row, rng))
        if self.task.overrides("collate"):
            batch = self.task.collate(rows)
        else:
            batch = {name: torch.tensor(np.stack([np.asarray(row[name]) for row in rows])) for name in rows[0]}
        return {k: (v.to(self.floats) if v.dtype == torch.float64 else v).clone() for k, v in batch.items()}


class Typed:
    """Rows as arrays, in the dtype of their column where it has one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        plain = hasattr(dataset, "format") and dataset.format["type"] is None
        self.dtypes = {name: _dtype(feature) for name, feature in dataset.features.items()} if plain else {}

    def __getitem__(self, number: int) -> dict[str, Any]:
        found = self.dataset[number]
        return {k: v if isinstance(v, str) else np.asarray(v, self.dtypes.get(k)) for k, v in found.items()}


class Mixture:
    """Each next row is of the source for which (twice its rows so far + 1) / weight is least; each goes round and round."""

    def __init__(self, sources: list[tuple[Any, int]]) -> None:
        self.sources, self.weights = [Typed(source) for source, _ in sources], [weight for _, weight in sources]
        self.places: list[tuple[int, int]] = []
        self.counts = [0] * len(sources)

    def __getitem__(self, number: int) -> dict[str, Any]:
        while len(self.places) <= number:
            turns = [Fraction(2 * count + 1, weight) for count, weight in zip(self.counts, self.weights, strict=True)]
            source = turns.index(min(turns))
            self.places.append((source, self.counts[source] % len(self.sources[source].dataset)))
            self.counts[source] += 1
        source, row = self.places[number]
        return self.sources[source][row]


def _dtype(feature: Any) -> Any:
    while not hasattr(feature, "dtype") or feature.dtype in ("list", "string"):
        if not hasattr(feature, "feature"):
            return None
        feature = feature.feature
    return feature.dtype


class Impure(Exception):
    """A buffer of which each micro-batch makes something else."""


def settle(model: nn.Module, start: Tensors, made: list[list[Tensors]]) -> None:
    """What a step makes of its buffers: running statistics are averaged in the tree, of any other all must make the same.

    Args:
        start: the buffers by name as the step found them.
        made: for each leaf, what its micro-batches that hold rows made of them, each from `start`.
    """
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)}
    every = [buffers for leaf in made for buffers in leaf]
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in start:
            raise Impure(f"{name} was made by a forward")
        if name not in saved:  # no start would find what a forward leaves there: each begins as the step did
            buffer.copy_(start[name])
            continue
        results = [buffers[name] for buffers in every]
        if all(torch.equal(result, start[name]) for result in results):
            buffer.copy_(start[name])
        elif name.rpartition(".")[0] not in norms:
            if not all(torch.equal(result, results[0]) for result in results):
                raise Impure(name)
            buffer.copy_(results[0])
        elif buffer.is_floating_point():
            leaves = [_in_order([{name: buffers[name]} for buffers in leaf]) for leaf in made]
            buffer.copy_(tree_of_tensors(leaves)[name] / len(every))
        else:
            buffer.copy_(torch.stack(results).amax(0))  # a micro-batch may pass a norm by


def _in_order(parts: list[Tensors]) -> Tensors:
    return functools.reduce(lambda left, right: {name: left[name] + right[name] for name in left}, parts) if parts else {}


def norm_of_rows(grads: list[torch.Tensor]) -> float:
    """Row by row, each norm squared in float64, all of them added at once."""
    squares = []
    for grad in grads:
        wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
        for row in wide.unbind() if grad.dim() else [wide]:
            norm = torch.linalg.vector_norm(torch.view_as_real(row) if row.is_complex() else row.reshape(-1)).item()
            squares.append(norm * norm)
    return math.sqrt(math.fsum(squares))


def make_optimizer(config: dict[str, Any], task: Task, model: nn.Module, parsed: Any) -> torch.optim.Optimizer:
    if task.overrides("optimizer"):
        return task.optimizer(model, parsed)
    if "name" not in config["optimizer"]:
        return Several(config["optimizer"], model, task.overrides("after_step"))  # type: ignore[return-value]
    trained = [p for p in model.parameters() if p.requires_grad]
    return one_optimizer(config["optimizer"], trained, model, True)  # type: ignore[no-any-return]


class Several:
    """An optimizer for each named part, one after the other."""

    def __init__(self, wanted: dict[str, Any], model: nn.Module, may_thaw: bool) -> None:
        stepped = {name: [*model.get_submodule(name).parameters()] for name in wanted}
        trains = {k: [p for p in ps if p.requires_grad or (may_thaw and p.is_floating_point())] for k, ps in stepped.items()}
        kernels = all(one["name"] in ("adam", "adamw", "sgd") for one in wanted.values())
        plain = not any({"foreach", "dampening", "amsgrad"} & set(one) for one in wanted.values())
        plain = plain and not any(p.is_complex() for ps in trains.values() for p in ps)
        plain = plain and not any(is_short_sgd(one["name"], trains[name]) for name, one in wanted.items())
        self.each = [one_optimizer(one, trains[name], model, kernels and plain) for name, one in wanted.items()]
        self.param_groups = [group for one in self.each for group in one.param_groups]

    def step(self) -> None:
        for one in self.each:
            one.step()


def is_short_sgd(name: str, parameters: list[nn.Parameter]) -> bool:
    """Of 16 bits, which torch's fused SGD leaves alone on a CPU."""
    return name == "sgd" and any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)


def one_optimizer(wanted: dict[str, Any], parameters: list[nn.Parameter], model: nn.Module, may_fuse: bool) -> Any:
    arguments = dict(wanted)
    name = arguments.pop("name")
    kind = next(value for key, value in vars(torch.optim).items() if key.lower() == name.lower())
    has_kernel = may_fuse and kind.__name__ in ("Adam", "AdamW", "SGD") and not any(p.is_complex() for p in model.parameters())
    has_kernel = has_kernel and not is_short_sgd(name, parameters)
    if has_kernel and not any(arguments.get(key) is not None for key in ("foreach", "dampening", "amsgrad")):
        arguments.setdefault("fused", True)  # one for a whole step, unless the user asks for another
    return InWholeVectors(kind, parameters, arguments) if arguments.get("fused") else kind(parameters, **arguments)


class InWholeVectors:
    """A fused optimizer over copies that zeros fill up to a multiple of 64 bytes; behind that its kernel rounds otherwise."""

    def __init__(self, kind: Callable[..., torch.optim.Optimizer], parameters: list[nn.Parameter], arguments: Any) -> None:
        self.copies = [nn.Parameter(self.filled_up(parameter.detach())) for parameter in parameters]
        self.inner = kind(self.copies, **arguments)
        self.param_groups = [{**group, "params": parameters} for group in self.inner.param_groups]
        if arguments.get("momentum"):  # torch's own fails where a first gradient comes later than others
            for copy in self.copies:
                self.inner.state[copy]["momentum_buffer"] = torch.zeros_like(copy)

    @staticmethod
    def filled_up(tensor: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(tensor.reshape(-1), (0, -tensor.numel() % (64 // tensor.element_size())))

    @torch.no_grad()
    def step(self) -> None:
        [group], [inner] = self.param_groups, self.inner.param_groups
        inner["lr"] = group["lr"]
        for parameter, copy in zip(group["params"], self.copies, strict=True):
            copy.copy_(self.filled_up(parameter))
            copy.grad = None if parameter.grad is None else self.filled_up(parameter.grad)
        self.inner.step()
        for parameter, copy in zip(group["params"], self.copies, strict=True):
            parameter.copy_(copy[: parameter.numel()].view(parameter.shape))


def train(config: dict[str, Any], task: Task, parsed: Any = None) -> Iterator[dict[str, Any]]:
    """Train, and give a row for each step and for each evaluation; the last row says what the run came to.

    Args:
        config: as it is written, without defaults.
        parsed: the config as an own optimizer gets it.
    """
    seed, size, micro_size = config.get("seed", 0), config["global_batch_size"], config["micro_batch_size"]
    num_micro = size // micro_size
    leaf_size = num_micro // (config.get("leaves") or num_micro)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.get("precision") == "bf16")
    seed_all(seed, 0, 0, READING)
    dataset = as_rows(task.data("train"))
    seed_all(seed, 0, 0, READING)
    held_out = as_rows(task.data("eval"))
    assert dataset is not None
    seed_all(seed)
    model = task.model()
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if config.get("init"):
        model.load_state_dict(safetensors.torch.load_file(Path(config["init"])))
    optimizer = make_optimizer(config, task, model, parsed)
    if config.get("compile"):
        compile_blocks(model)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    rows, order = Reader(task, dataset, seed, floats), order_of(dataset, seed)
    if task.overrides("weights"):
        order = Draws(np.asarray(task.weights("train"), np.float64), seed)
    full, rest = divmod(len(dataset), size)
    per_epoch = full + (rest > 0 and not config.get("drop_last", False))
    steps = as_steps(config["steps"], per_epoch, 0) if "steps" in config else config["epochs"] * per_epoch
    judge = Judge(config)
    every = as_steps(config.get("evaluate", {}).get("every") or 0, per_epoch, steps) or None
    judged: list[float] = []

    def evaluation(step: int) -> Iterator[dict[str, Any]]:
        if held_out is not None:
            found = evaluate(config, task, model, Reader(task, held_out, seed, floats), autocast)
            judge.take(step, found, lambda: digest(model.state_dict()))
            if config.get("schedule", {}).get("name") == "plateau":
                judged.append(found[config["schedule"].get("metric", "loss")])
            yield {"step": step, "epoch": (step - 1) // per_epoch + 1} | {f"eval_{k}": v for k, v in found.items()}

    for step in range(steps):
        epoch, begin = step // per_epoch, step % per_epoch * size
        model.zero_grad(set_to_none=True)
        pairs: list[tuple[Any, Any]] = []
        own: list[dict[str, Any]] = []
        leaves: list[Tensors] = []
        made: list[list[Tensors]] = []
        start = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for index in range(num_micro):
            if index % leaf_size == 0:
                leaves.append({})
                made.append([])
            first = begin + index * micro_size
            count = max(0, min(micro_size, len(dataset) - first))
            if count == 0:
                pairs.append((0.0, 0.0))
                continue
            seed_all(seed, step, index, LOADING)
            batch = rows.read(order.rows(epoch, first, first + count).tolist(), epoch)
            seed_all(seed, step, index)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(start.get(name, buffer))
            for p in model.parameters():
                p.grad = leaves[-1].get(p)
            with autocast:
                loss, weight, *rest = task.loss(model, batch)
            own += rest
            loss.backward()
            leaves[-1] = {p: p.grad for p in model.parameters() if p.grad is not None}
            pairs.append((loss.detach().double(), weight))
            made[-1].append({name: buffer.clone() for name, buffer in model.named_buffers()})

        total, weight_sum = tree_of_pairs(pairs)
        weight = torch.tensor(weight_sum, dtype=torch.float64)
        sums = tree_of_tensors(leaves)
        with torch.no_grad():
            settle(model, start, made)
        for p in model.parameters():
            p.grad = sums[p] if p in sums and p in stepped else None
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        loss_value = total / weight_sum if weight_sum else math.nan
        norm = torch.tensor(norm_of_rows(grads), dtype=torch.float64) / weight  # a float over a tensor is times its reciprocal
        if not math.isfinite(loss_value + float(norm)):
            raise Diverged(f"step {step + 1}")
        clip = config.get("clip")
        for grad in grads:
            grad.div_(weight if clip is None else weight * (norm / clip).clamp(min=1.0))
        factor = rate_factor(config.get("schedule", {}), step, steps, judged, per_epoch)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        seed_all(seed, step, 0, STEPPING)
        optimizer.step()
        if task.overrides("after_step"):
            seed_all(seed, step, 0, AFTER_STEP)
            with torch.no_grad():
                task.after_step(model, step + 1)
        named = {}
        for key in own[0] if own else ():
            missing = [(0.0, 0.0)] * (num_micro - len(own))  # the micro-batches without rows stand behind the others
            top, bottom = tree_of_pairs([(float(found[key][0]), found[key][1]) for found in own] + missing)
            named[key] = top / bottom if bottom else math.nan
        numbers = {"loss": loss_value, "lr": base_rates[0] * factor, "grad_norm": float(norm)}
        yield {"step": step + 1, "epoch": epoch + 1, "weights": digest(model.state_dict()), **numbers, **named}

        if every and (step + 1) % every == 0 and step + 1 < steps:
            yield from evaluation(step + 1)
            if judge.is_converged:
                break
    else:
        yield from evaluation(steps)
    yield {"weights": digest(model.state_dict()), "step": step + 1, "best": judge.best_step, "best_weights": judge.best_weights}


def evaluate(config: dict[str, Any], task: Task, model: nn.Module, rows: Reader, autocast: torch.autocast) -> dict[str, float]:
    """Each metric's Σ sums / Σ weights over the micro-batches that have it, in the split's own order."""
    size, most = config["micro_batch_size"], config.get("evaluate", {}).get("batches")
    starts = list(range(0, len(rows.dataset), size))[:most]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found: list[dict[str, tuple[Any, Any]]] = []
    for index, first in enumerate(starts):
        seed_all(config.get("seed", 0), index, EVALUATING)
        batch = rows.read(list(range(first, min(first + size, len(rows.dataset)))), epoch=0)
        with torch.no_grad(), autocast:
            found.append(dict(task.metrics(model, batch)))
    for module, training in modes.items():
        module.training = training
    names = sorted({name for metrics in found for name in metrics})
    totals = {name: tree_of_pairs([metrics.get(name, (0.0, 0.0)) for metrics in found]) for name in names}
    return {name: total / weight if weight else math.nan for name, (total, weight) in totals.items()}


class Judge:
    """The best evaluation so far, and whether patience has run out. NaN is never better than anything."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.converge: dict[str, Any] = config.get("converge") or {}
        best: str = config.get("checkpoint", {}).get("best") or ""
        self.metric, _, self.goal = best.partition(":")
        self.best = self.best_of_wait = math.inf
        self.waited = 0
        self.best_step: int | None = None
        self.best_weights: str | None = None

    def take(self, step: int, metrics: dict[str, float], weights: Callable[[], str]) -> None:
        if self.metric:
            value = metrics[self.metric] * (-1 if self.goal == "max" else 1)
            if value < self.best:
                self.best, self.best_step, self.best_weights = value, step, weights()
        if self.converge:
            value = metrics[self.converge["metric"]] * (-1 if self.converge["goal"] == "max" else 1)
            if value < self.best_of_wait - self.converge.get("min_delta", 0.0):
                self.best_of_wait, self.waited = value, 0
            else:
                self.waited += 1

    @property
    def is_converged(self) -> bool:
        return bool(self.converge) and self.waited >= self.converge["patience"]
