"""Checkpoints: whole or absent, verified before they are used, and knowing nothing of ranks."""

from samestep.checkpoint.files import Checkpoints, checksum, read, read_chosen, verify
from samestep.checkpoint.saving import NullSaver, Saver
from samestep.checkpoint.state import Saved, capture, refuse_unsavable, restore, restore_modes, weights_hash

__all__ = [
    "Checkpoints",
    "NullSaver",
    "Saved",
    "Saver",
    "capture",
    "checksum",
    "read",
    "read_chosen",
    "refuse_unsavable",
    "restore",
    "restore_modes",
    "verify",
    "weights_hash",
]
