"""The kind of device that a run computes on, with what was chosen there: all on which its bits hang."""

from __future__ import annotations

import torch

from samestep.exact import norm_way
from samestep.runtime.device_kind import device_kind
from samestep.session.attention import attention_kind


def kind_of(device: torch.device) -> dict[str, str]:
    """What is compared between ranks, and with what a checkpoint says of the device that made it."""
    chosen = {"attention": attention_kind(), "norm": norm_way()} if device.type == "cuda" else {}
    return device_kind(device) | chosen
