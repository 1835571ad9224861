"""A model whose rows lie on many ranks, and the ordered sum over it: the same tree, and so the same bits."""

from samestep.exact.sharded.model import USED_ROWS, Shard, ShardedModel, refuse_uncuttable, row_cuts
from samestep.exact.sharded.sum import ShardedSum

__all__ = ["USED_ROWS", "Shard", "ShardedModel", "ShardedSum", "refuse_uncuttable", "row_cuts"]
