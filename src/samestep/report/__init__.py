"""Runs as one HTML page that needs nothing else: curves, where the time went, config, machine. Imports no torch."""

from samestep.report.page import page
from samestep.report.record import Record, read

__all__ = ["Record", "page", "read"]
