"""A model whose parameters are cut into row ranges, one for each rank, by torch's FSDP2 (`fully_shard`).

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023. FSDP2 gathers a block's parameters
before its forward and backward; what it makes of the gradients is `sharded_sum`'s.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from samestep.errors import UsageError
from samestep.exact.nodes import nodes_of
from samestep.exact.totals import gather, keep_to_collectives

_RAISED = -1 << 62  # of who has left a forward by an error: no block's number, nor a hash in all likelihood
USED_ROWS = "a parameter of which this rank has its rows alone is used"
_HARMLESS = (
    "__get__", "__set__", "__hash__", "__repr__", "detach", "dim", "element_size", "is_complex", "is_contiguous",
    "is_floating_point", "numel", "requires_grad_", "size", "stride",
)  # fmt: skip


def row_cuts(num_rows: int, world_size: int) -> list[int]:
    """Where each rank's rows of a parameter begin, as `fully_shard` cuts it: world_size + 1 numbers, num_rows the last."""
    each = -(-num_rows // world_size)
    return [min(rank * each, num_rows) for rank in range(world_size + 1)]


def _in_a_row(nodes: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Nodes of several ranks each, where all have as many and each begins where the one before it ends; else none."""
    each = len(nodes[0])
    is_fit = each > 1 and all(list(ranks) == list(range(place * each, (place + 1) * each)) for place, ranks in enumerate(nodes))
    return nodes if is_fit else []


class _AnotherWay(UsageError):
    """The forward went through other blocks on one rank than on another."""


@dataclass(eq=False)
class Shard:
    """This rank's rows of one parameter: `first_row` and on of its first dimension, maybe none."""

    names: list[str]  # of the parameter in the model: several where it is tied
    whole: nn.Parameter  # what FSDP has put in its place, a DTensor
    local: nn.Parameter  # the rows, in the same memory: what the optimizer steps
    shape: torch.Size  # of the whole parameter
    first_row: int

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a tensor that has the whole parameter's shape."""
        return tensor.narrow(0, self.first_row, len(self.local))


class ShardedModel:
    """One model over all ranks, or one over those of each node.

    Args:
        model: whole, the same on every rank, on the host: each block's parameters move to the device on their own.
        blocks: modules within it that are gathered one at a time; the rest of the model is one more.
        nodes: the ranks that have one model among them, equally many in each; by default all.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        group: dist.ProcessGroup,
        nodes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        keep_to_collectives(group)
        self.model = model
        self.nodes = nodes or [list(range(dist.get_world_size(group)))]
        self.group, self.node = group, 0
        self.across: dist.ProcessGroup | None = None  # those who have the same rows in other nodes
        self.levels: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None  # within nodes, and between them
        places = nodes or _in_a_row(nodes_of(group))
        if len(places) > 1:
            levels = DeviceMesh(device.type, torch.tensor(places), mesh_dim_names=("node", "place"))
            self.levels = levels.get_group("place"), levels.get_group("node")
        if nodes is None or self.levels is None:
            mesh = DeviceMesh(device.type, torch.arange(dist.get_world_size(group)))
        else:
            (self.group, self.across), self.levels, mesh = self.levels, None, levels["place"]
            self.node = dist.get_rank(self.across)
        self.rank, self.world_size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.blocks: list[nn.Module] = [*blocks, model]
        own, taken = [], set[nn.Parameter]()
        for block in self.blocks:
            own.append({name: parameter for name, parameter in block.named_parameters() if parameter not in taken})
            taken |= set(own[-1].values())
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        shapes = [(sorted(known), parameter.shape) for parameter, known in names.items()]
        self.visited: list[int] = []  # blocks, in the order in which forwards came to them
        self._originals = list(names)
        self.left_behind = weakref.WeakSet(names)  # those that something else than the model holds
        for block, whole_ones in zip(self.blocks, own, strict=True):
            fully_shard(block, mesh=mesh)
            for parameter in whole_ones.values() if device.type != "cpu" else ():
                parameter.data = parameter.new_empty(0)  # it has been on the device for a moment, and others follow
        self.shards: list[Shard] = []
        found = dict(model.named_parameters(remove_duplicate=False))
        for known, shape in shapes:
            whole = found[known[0]]
            with torch.no_grad():
                local = nn.Parameter(_rows(whole), requires_grad=whole.requires_grad)
            whole.__class__ = _rows_alone()
            self.shards.append(Shard(known, whole, local, shape, row_cuts(shape[0], self.world_size)[self.rank]))
        by_original = dict(zip(names, self.shards, strict=True))
        self.own = [{name: by_original[parameter] for name, parameter in found.items()} for found in own]  # by block

    def swap(self) -> dict[nn.Parameter, Shard]:
        """The shard of each parameter that the model had; forgets those parameters, whose memory goes with them."""
        originals, self._originals = self._originals, []
        return dict(zip(originals, self.shards, strict=True))

    def reshard(self) -> None:
        """Let go of what a forward without a backward has left gathered: the next step would begin with it."""
        model: Any = self.model
        model.reshard()

    def refuse_another_way(self) -> None:
        """After a forward on every rank: raise UsageError on all unless it went through the same blocks in one order."""
        visited, self.visited = self.visited, []
        self.refuse_other_mark(hash(tuple(visited)))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward inside that may raise on one rank alone, which the others hear where they are, in a block or behind it."""
        visited, self.visited = self.visited, []
        try:
            yield
            self.refuse_other_mark(hash(tuple(self.visited)), unless=_RAISED)
        except _AnotherWay:
            raise  # all have heard
        except Exception:
            with contextlib.suppress(Exception):  # what it has raised is what counts
                self.refuse_other_mark(_RAISED)
            raise
        finally:
            self.visited = visited

    def refuse_other_mark(self, mark: int, unless: int | None = None) -> None:
        """Raise UsageError on every rank unless all have come here with the same mark of where they are in the forward.

        Args:
            unless: another's mark that stands for any.
        """
        marks = set(gather(torch.tensor([mark])).view(-1).tolist())
        if len(marks) > 1 and unless not in marks:
            raise _AnotherWay(
                "shard: the forward went through other blocks on one rank than on another, and they are gathered together; "
                "have each micro-batch pass through all of them, in one order, or leave shard out"
            )

    def whole_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each entry of the model's state_dict by name, sorted, whole and on the host: gathered one at a time by all ranks."""
        by_name = {name: shard for shard in self.shards for name in shard.names}
        for name, tensor in sorted(self.model.state_dict().items()):
            yield name, self.gathered(by_name[name]) if name in by_name else tensor.detach().cpu()

    def gathered(self, shard: Shard) -> torch.Tensor:
        """A whole parameter, on the host of every rank."""
        local = shard.local.detach()
        padded = local.new_zeros(row_cuts(shard.shape[0], self.world_size)[1], *shard.shape[1:])
        padded[: len(local)] = local
        everyone = gather(padded.flatten().view(torch.uint8), self.group).view(local.dtype)  # gloo has no integers of 16 bits
        return everyone.view(-1, *shard.shape[1:])[: shard.shape[0]].cpu()


@functools.cache
def _rows_alone() -> type:
    """The class of a parameter outside its block's forward: of what is made of it there, torch would give this rank's part."""
    from torch.distributed.tensor import DTensor

    class RowsAlone(DTensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ not in _HARMLESS:
                raise RuntimeError(f"{USED_ROWS} by {func.__name__}")
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
            if type(found) is DTensor and func.__name__ == "detach":
                found.__class__ = cls
            return found

    return RowsAlone


def _rows(whole: Any) -> torch.Tensor:
    rows: torch.Tensor = whole.to_local()
    return rows


def refuse_uncuttable(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raise UsageError for a model that cannot be cut, by the names of what stands in the way."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
        raise UsageError(f"shard: found torch {torch.__version__}, and sharding needs 2.9 or newer; leave it out")
    lines = []
    owners: dict[nn.Parameter, nn.Module] = {}
    for block in blocks:
        for parameter in block.parameters():
            if owners.setdefault(parameter, block) is not block:
                lines.append(_tied(model, parameter))
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if id(module) not in inside else ():
            if parameter in owners:
                lines.append(_tied(model, parameter))
    for name, parameter in model.named_parameters():
        if not parameter.dim():
            lines.append(f"shard: {name} has no dimension to cut; make it of shape (1,)")
        elif parameter.is_complex():
            lines.append(f"shard: {name} is complex, which cannot be cut; keep its real and imaginary part, or leave shard out")
        elif parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            lines.append(f"shard: {name} has a hook on its gradient, of which no rank has the whole; leave one of them out")
        elif not parameter.is_contiguous():
            lines.append(f"shard: {name} does not lie in rows (channels_last?); leave that out, or shard")
    spots: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        spot = tensor.untyped_storage().data_ptr()
        if spot and spots.setdefault(spot, name) != name:
            lines.append(
                f"shard: {spots[spot]} and {name} lie in one memory, which would be cut twice; make them one parameter"
            )
    rest = [parameter for parameter in model.parameters() if parameter not in owners]
    for title, group in [
        *((type(block).__name__, list(block.parameters())) for block in blocks),
        ("what is in no block", rest),
    ]:
        kinds = {parameter.dtype for parameter in group if parameter.requires_grad}
        if len(kinds) > 1:
            words = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            lines.append(f"shard: {title} has parameters of {words}; make them of one kind")
    if lines:
        raise UsageError(*dict.fromkeys(lines))


def _tied(model: nn.Module, parameter: nn.Parameter) -> str:
    names = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    return f"shard: {' and '.join(names)} are one parameter of several blocks; tie none across blocks, or leave shard out"
