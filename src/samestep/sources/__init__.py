"""Where rows come from: tensors in memory, Arrow tables, token files, Parquet files, mixtures; and what tells data apart."""

from samestep.sources.arrays import Arrays, are_arrays
from samestep.sources.columns import make_rows
from samestep.sources.differences import differences, doubt
from samestep.sources.identity import Identity, identity
from samestep.sources.rows import Rows
from samestep.sources.source import Source, is_dataset, order_of
from samestep.sources.tokens import Tokens

__all__ = [
    "Arrays",
    "Identity",
    "Rows",
    "Source",
    "Tokens",
    "are_arrays",
    "differences",
    "doubt",
    "identity",
    "is_dataset",
    "make_rows",
    "order_of",
]
