"""Parquet files that need not fit on this machine's disk, on it or behind a URL."""

from samestep.sources.parquet.source import Parquet

__all__ = ["Parquet"]
