"""Which kernel computes attention, and what is said of it; the GPUs are made up, and what torch would be asked is not."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from conftest import ROOT
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.session import attention, mistake_behind
from samestep.session.accelerator import choose_multiplication
from samestep.session.attention import AttentionCalls, attention_kind, choose_attention

SWITCHES = ("flash", "mem_efficient", "math", "cudnn")


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    found: Any = torch.backends.cuda
    before = {name: getattr(found, f"{name}_sdp_enabled")() for name in SWITCHES}
    yield
    for name, is_on in before.items():
        getattr(found, f"enable_{name}_sdp")(is_on)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A GPU on which FlashAttention 3 and 4 compute, where `installed` says what there is."""
    machine = types.SimpleNamespace(installed=set(), capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: machine.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Made Up 9000")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in machine.installed else None)
    registry = pytest.importorskip("torch.nn.attention._registry")
    handle = types.SimpleNamespace(remove=lambda: None)
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_IMPLS", {"FA4": lambda: handle, "FA3": lambda: handle})
    yield machine
    registry.restore_flash_attention_impl(_raise_warn=False)


FA4, FA3 = "flash_attn.cute.interface", "flash_attn_interface"


@pytest.mark.parametrize(
    ("installed", "kind"),
    [
        (set(), "flash, efficient, math"),
        ({FA3}, "fa3 of an unknown version, efficient, math"),
        ({FA3, FA4}, "fa4 of an unknown version, efficient, math"),
    ],
)
def test_auto_takes_the_fastest_that_is_installed_and_never_cudnns(hopper: Any, installed: set[str], kind: str) -> None:
    hopper.installed = installed
    choose_attention("auto", exact=True)
    assert attention_kind() == kind


def test_a_gpu_of_another_generation_has_what_torch_brings(hopper: Any) -> None:
    hopper.installed, hopper.capability = {FA3, FA4}, (8, 0)
    choose_attention("auto", exact=True)
    assert attention_kind() == "flash, efficient, math"


def test_where_sums_need_no_order_torch_chooses(hopper: Any) -> None:
    before = attention_kind()
    hopper.installed = {FA4}
    choose_attention("auto", exact=False)
    assert attention_kind() == before


@pytest.mark.parametrize("wanted", ["flash", "efficient", "math"])
def test_one_that_is_named_is_the_only_one(hopper: Any, wanted: str) -> None:
    hopper.installed = {FA4}
    choose_attention(wanted, exact=True)
    assert attention_kind() == wanted


def test_one_that_is_not_to_be_had_is_refused_with_the_reason(hopper: Any) -> None:
    with pytest.raises(
        UsageError, match=r"attention: found fa4, and there is no flash_attn\.cute\.interface to import; write auto, "
    ):
        choose_attention("fa4", exact=True)
    hopper.installed, hopper.capability = {FA3}, (10, 0)
    with pytest.raises(UsageError, match="attention: found fa3, and Made Up 9000 is no GPU that it computes on; write auto, "):
        choose_attention("fa3", exact=True)


def test_a_package_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not attention._is_installed("no_such_package.of.anybodys")
    assert attention._is_installed("json.decoder")


def test_one_that_does_not_start_is_passed_over_or_refused(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("Module does not expose FA4 kernels")

    hopper.installed = {FA4}
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", fail)
    choose_attention("auto", exact=True)
    assert attention_kind() == "flash, efficient, math"
    with pytest.raises(UsageError, match=r"it does not start \(Module does not expose FA4 kernels\)"):
        choose_attention("fa4", exact=True)


def heard(dtype: torch.dtype, size: int = 8, mask: bool = False) -> list[str]:
    q = torch.randn(2, 2, 4, size, dtype=dtype)
    with AttentionCalls() as calls:
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool) if mask else None)
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    return [line.partition(":")[0] for line in calls.lines()]


def test_check_says_which_kernel_a_gpu_takes_for_the_models_own_inputs() -> None:
    assert heard(torch.float32) == ["2 × efficient in a forward (float32, heads of 8)"]
    assert heard(torch.bfloat16) == ["2 × flash in a forward (bfloat16, heads of 8)"]
    assert heard(torch.bfloat16, mask=True) == [
        "1 × efficient in a forward (bfloat16, heads of 8, a mask)",
        "1 × flash in a forward (bfloat16, heads of 8)",
    ]
    assert heard(torch.bfloat16, size=512) == ["2 × efficient in a forward (bfloat16, heads of 512)"]
    assert heard(torch.float64) == ["2 × math in a forward (float64, heads of 8)"]


def test_under_autocast_it_is_the_type_that_is_cast_to() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert heard(torch.float32) == ["2 × flash in a forward (bfloat16, heads of 8)"]


def test_encoders_of_torchs_own_are_heard_too() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True)
    with AttentionCalls() as calls:
        layer(torch.randn(2, 4, 16))
    assert len(calls.lines()) == 1


def test_tf32_is_refused_where_a_gpu_has_none(hopper: Any) -> None:
    hopper.capability = (7, 5)
    with pytest.raises(UsageError, match="precision: found tf32, which Made Up 9000 does not have; write no, or fp16"):
        choose_multiplication("tf32")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    hopper.capability = (8, 6)
    choose_multiplication("no")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    choose_multiplication("tf32")
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_nothing_in_the_registry_is_asked_of_an_older_torch(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    choose_attention("auto", exact=True)
    assert attention_kind() == "flash, efficient, math"
    with pytest.raises(UsageError, match=r"has no place for it: that is in 2\.11 and newer"):
        choose_attention("fa4", exact=True)
    assert attention._REGISTERED.keys() == {"fa4", "fa3"}


def test_what_a_prototype_does_not_compute_is_told_with_what_to_write() -> None:
    config, _ = load_config(ROOT / "configs/seed.yaml")
    error = mistake_behind(RuntimeError("FA4 flash_attention forward unsupported: dropout_p must be 0"), config)
    assert error is not None
    assert error.lines == ("attention: FA4 flash_attention forward unsupported: dropout_p must be 0; write attention=flash",)
