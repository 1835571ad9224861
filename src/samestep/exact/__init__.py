"""The ordered sum: the same bits at every world size. `OrderedSum` serves anyone's own loop; the tree needs no DDP."""

from samestep.exact.buckets import exchange_bytes
from samestep.exact.gradients import FastSum, OrderedSum, check_world_size, everyone
from samestep.exact.nodes import nodes_of
from samestep.exact.norm import norm_way, total_norm
from samestep.exact.scalars import Scalar, as_float, is_finite, ratio
from samestep.exact.sharded import USED_ROWS, Shard, ShardedModel, ShardedSum, refuse_uncuttable, row_cuts
from samestep.exact.statistics import Statistics
from samestep.exact.step_sums import StepSums
from samestep.exact.step_totals import StepExchange, Totals
from samestep.exact.totals import as_bits, fingerprint, gather, in_order, ordered_total, padded
from samestep.exact.tree import Block, Sum, blocks_of, contiguous, cuts, dealt, tree_sum

__all__ = [
    "USED_ROWS",
    "Block",
    "FastSum",
    "OrderedSum",
    "Scalar",
    "Shard",
    "ShardedModel",
    "ShardedSum",
    "Statistics",
    "StepExchange",
    "StepSums",
    "Sum",
    "Totals",
    "as_bits",
    "as_float",
    "blocks_of",
    "check_world_size",
    "contiguous",
    "cuts",
    "dealt",
    "everyone",
    "exchange_bytes",
    "fingerprint",
    "gather",
    "in_order",
    "is_finite",
    "nodes_of",
    "norm_way",
    "ordered_total",
    "padded",
    "ratio",
    "refuse_uncuttable",
    "row_cuts",
    "total_norm",
    "tree_sum",
]
