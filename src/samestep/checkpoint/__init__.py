"""Checkpoints: whole or absent, verified before they are used, and knowing nothing of ranks."""

from samestep.checkpoint.copies import Copies, NoCopies
from samestep.checkpoint.ending import DUE, Ending
from samestep.checkpoint.files import Checkpoints
from samestep.checkpoint.reading import checksum, read, read_chosen, verify
from samestep.checkpoint.saving import NullSaver, Saver, SharedSaver
from samestep.checkpoint.sharded import SharedCheckpoints
from samestep.checkpoint.slab import Slab, size_of
from samestep.checkpoint.state import Saved, capture, refuse_unsavable, restore, restore_modes, weights_hash

__all__ = [
    "DUE",
    "Checkpoints",
    "Copies",
    "Ending",
    "NoCopies",
    "NullSaver",
    "Saved",
    "Saver",
    "SharedCheckpoints",
    "SharedSaver",
    "Slab",
    "capture",
    "checksum",
    "read",
    "read_chosen",
    "refuse_unsavable",
    "restore",
    "restore_modes",
    "size_of",
    "verify",
    "weights_hash",
]
