"""What needs a CUDA device; without one each test says so and is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from conftest import Workplace
from samestep.checkpoint import Slab
from samestep.config import Schedule
from samestep.exact import norm
from samestep.optimizer import FusedStep, GatedOptimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture
def workplace(workplace: Workplace) -> Workplace:
    """Where runs see the GPUs."""
    del workplace.env["CUDA_VISIBLE_DEVICES"]
    return workplace


FORCED = """
import sys, torch, torch.distributed as dist
from samestep.exact import OrderedSum, buckets, transfer

dist.init_process_group("nccl")
device = torch.device("cuda", 0)
torch.manual_seed(0)
make = lambda: torch.nn.Sequential(*[torch.nn.Linear(65, 65) for _ in range(6)]).to(device)
alone, bare = make(), make()
bare.load_state_dict(alone.state_dict())
buckets._FIRST_BYTES = buckets._BYTES = 20_000
transfer._GATHERED_ELEMENTS = int(sys.argv[1])
data = torch.randn(7, 16, 65, device=device)
local, forced = OrderedSum(alone, 7), OrderedSum(bare, 7, group=dist.group.WORLD)
send = forced.exchange._send
def late(*words):
    torch.cuda._sleep(20_000_000)  # on the side stream: a missing wait would read gradients that are not there yet
    return send(*words)
forced.exchange._send = late
for step in range(10):
    for ordered, plain in ((local, alone), (forced, bare)):
        plain.zero_grad()
        for index in ordered.share:
            with ordered.micro_batch(index):
                ordered.backward(plain(data[index].clone()).square().sum())
        ordered.finish()
    for a, b in zip(alone.parameters(), bare.parameters()):
        assert torch.equal(a.grad, b.grad), step
dist.destroy_process_group()
"""


@pytest.mark.parametrize("gathered", [0, 1 << 15])
def test_the_hook_forced_on_one_gpu_equals_the_local_fold(workplace: Workplace, gathered: int) -> None:
    script = workplace.write("forced.py", FORCED)
    done = workplace.command(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", script, str(gathered)
    )
    assert done.code == 0, done.err


def test_the_sharded_sum_forced_on_one_gpu_equals_the_local_fold(workplace: Workplace) -> None:
    script = str(Path(__file__).parent / "forced_shards.py")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    done = workplace.command(sys.executable, *launcher, script, "cuda:nccl")
    assert done.code == 0, done.err


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_sharded_run_on_two_gpus_has_the_bits_of_one(workplace: Workplace, precision: str) -> None:
    workplace.write(
        "case.yaml",
        "task: text\nwith: {context: 64, width: 128, layers: 2, heads: 4, dropout: 0.1, shown: 0}\nglobal_batch_size: 32\n"
        f"micro_batch_size: 4\nsteps: 20\nclip: 1.0\nprecision: '{precision}'\noptimizer: {{name: adamw, lr: 3e-3}}\n"
        "evaluate: {batches: 4}\ntrack: {every: 5, wandb: 'off'}\n",
    )
    one = workplace.train("case.yaml", "--run", "one")
    two = workplace.train("case.yaml", "--run", "two", "shard=true", processes=2)
    assert one.code == two.code == 0, one.err + two.err
    assert one.weights == two.weights


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_on_one_gpu_repeats_itself_to_the_bit_and_resumes(workplace: Workplace, precision: str) -> None:
    workplace.write(
        "text.yaml",
        "task: text\nwith: {dropout: 0.1, shown: 0}\nglobal_batch_size: 32\nmicro_batch_size: 8\nsteps: 40\nclip: 1.0\n"
        f"optimizer: {{name: adamw, lr: 1e-3}}\nprecision: {precision}\ntrack: {{wandb: 'off'}}\n",
    )
    first = workplace.train("text.yaml", "--run", "first")
    assert first.code == 0, first.err
    assert workplace.train("text.yaml", "--run", "second").weights == first.weights
    half = workplace.train("text.yaml", "--run", "half", "steps=20")
    assert half.code == 0, half.err
    assert workplace.train("text.yaml", "--run", "half").weights == first.weights


TEXT = """
task: text
with: {context: 64, width: 128, layers: 2, heads: 4, dropout: 0.1, shown: 0}
global_batch_size: 32
micro_batch_size: 4
steps: 12
clip: 1.0
optimizer: {name: adamw, lr: 3e-3}
schedule: {name: cosine, warmup: 3}
audit: {every: 5}
evaluate: {batches: 4}
track: {every: 5, wandb: "off"}
"""

PICTURES = """
import torch
from torch import nn
from torch.nn import functional as F
import samestep

class Pictures(samestep.Task):
    channels_last: bool = False

    def model(self):
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 33, 3, stride=2), nn.BatchNorm2d(33),
            nn.ReLU(), nn.Dropout(0.1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(132, 10))
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def data(self, split):
        made = torch.Generator().manual_seed(int(split == "train"))
        x = torch.randn(200, 3, 17, 17, generator=made)
        y = (x.mean((1, 2, 3)) * 40 + 5).clamp(0, 9).long()
        return [{"x": a, "y": b} for a, b in zip(x, y)]

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])
"""


def on_one_device(workplace: Workplace, processes: int, *words: str) -> str:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--")
    script = str(Path(__file__).parent / "one_device.py")
    done = workplace.command(sys.executable, *launcher, script, "train", *words)
    assert done.code == 0, done.err
    return done.weights


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_ranks_that_share_a_gpu_have_the_bits_of_one(workplace: Workplace, precision: str) -> None:
    workplace.write("text.yaml", TEXT + f"precision: '{precision}'\n")
    one = workplace.train("text.yaml", "--run", "one")
    assert one.code == 0, one.err
    for processes in (2, 3):
        for words in ((), ("shard=true",), ("shard=true", "recompute=true")):
            run = f"on-{processes}-{len(words)}"
            assert on_one_device(workplace, processes, "text.yaml", "--run", run, *words) == one.weights, (processes, words)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_convolutions_and_batch_statistics_of_ranks_that_share_a_gpu(
    workplace: Workplace, precision: str, channels_last: bool
) -> None:
    workplace.write("pictures.py", PICTURES)
    workplace.write(
        "pictures.yaml",
        f"task: pictures.py:Pictures\nwith: {{channels_last: {str(channels_last).lower()}}}\nglobal_batch_size: 24\n"
        "micro_batch_size: 3\nsteps: 24\noptimizer: {name: sgd, lr: 1e-3, momentum: 0.9}\nclip: 1.0\naudit: {every: 5}\n"
        f"track: {{every: 5, wandb: 'off'}}\nprecision: '{precision}'\n",
    )
    one = workplace.train("pictures.yaml", "--run", "one")
    assert one.code == 0, one.err
    for processes in (2, 5):
        assert on_one_device(workplace, processes, "pictures.yaml", "--run", f"on-{processes}") == one.weights


def test_compiled_blocks_of_ranks_that_share_a_gpu(workplace: Workplace) -> None:
    workplace.write("text.yaml", TEXT.replace("cosine, warmup: 3", "constant") + "precision: bf16\ncompile: true\n")
    one = workplace.train("text.yaml", "--run", "one")
    assert one.code == 0, one.err
    half = workplace.train("text.yaml", "--run", "half", "steps=6")
    assert half.code == 0, half.err
    assert workplace.train("text.yaml", "--run", "half").weights == one.weights
    assert on_one_device(workplace, 2, "text.yaml", "--run", "on-2") == one.weights
    assert on_one_device(workplace, 2, "text.yaml", "--run", "cut", "shard=true") == one.weights


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_no_step_waits_for_the_device(workplace: Workplace, precision: str) -> None:
    workplace.env["PYTHONWARNINGS"] = "always"
    workplace.write("text.yaml", TEXT + f"precision: '{precision}'\n")
    script = workplace.write(
        "warned.py", "import torch\nfrom samestep.cli import main\ntorch.cuda.set_sync_debug_mode('warn')\nmain()\n"
    )
    waits = []
    for steps in (70, 90):  # behind the 64th and before the 100th: at those what a step did is looked at
        done = workplace.command(
            sys.executable,
            script,
            "train",
            "text.yaml",
            "audit=false",
            "track.every=1000",
            "--run",
            f"of-{steps}",
            f"steps={steps}",
        )
        assert done.code == 0, done.err
        waits.append([line for line in done.err.splitlines() if "synchronizing CUDA operation" in line])
    assert len(waits[0]) == len(waits[1]), waits[1]


def test_the_norm_in_one_pass_is_the_same_for_every_cut_and_place() -> None:
    assert norm.norm_way().startswith("in one pass")
    draw = torch.Generator("cuda").manual_seed(0)
    grads = [torch.randn(shape, generator=draw, device="cuda") for shape in ((300, 700), (1000,), (7, 3, 3, 3), (1, 5000))]
    whole = norm.total_norm(grads)
    assert isinstance(whole, torch.Tensor)
    exact = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5
    assert whole.item() == pytest.approx(exact, rel=1e-12)
    for begin in (0, 1, 3):  # numbers after an aligned address
        moved = [torch.cat([grad.new_zeros(begin), grad.reshape(-1)])[begin:].view(grad.shape) for grad in grads]
        assert norm.total_norm(moved).item() == whole.item()  # type: ignore[union-attr]
    parts = [[grad[: len(grad) // 2].clone() for grad in grads], [grad[len(grad) // 2 :].clone() for grad in grads]]
    bins = norm.row_bins(parts[0]) + norm.row_bins(parts[1])
    assert norm.total_norm(grads[:1], lambda _: bins).item() == whole.item()  # type: ignore[union-attr]
    assert norm.total_norm([*grads, torch.tensor([torch.inf], device="cuda")]).item() == torch.inf  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@torch.no_grad()
def test_dividing_within_the_step_gives_the_bits_of_dividing_before_it(name: str) -> None:
    ends = []
    for before in (True, False):
        draw = torch.Generator("cuda").manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(n, 33, generator=draw, device="cuda")) for n in (1, 64, 1000)]
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
        optimizer = kind(parameters, lr=0.1, fused=True, **({"momentum": 0.9} if name == "sgd" else {}))
        step = FusedStep(optimizer)
        for divisor in (3.0, 16384.0, 0.1, 16777217.0, 12345.678):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw, device="cuda") * divisor
            by = torch.tensor(divisor, device="cuda")
            if before:
                torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], by)
            else:
                step.divisor = by
            optimizer.found_inf = torch.zeros((), device="cuda")
            step()
        ends.append([*parameters, *(parameter.grad for parameter in parameters)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_what_a_save_copies_is_what_stood_there_though_its_stream_is_late() -> None:
    parameter, buffer = torch.nn.Parameter(torch.ones(1 << 20, device="cuda")), torch.ones(1 << 10, device="cuda")
    slab = Slab(torch.device("cuda"))
    slab.reserve(1 << 23)
    slab.copy([parameter], [buffer])[1].synchronize()  # type: ignore[union-attr]
    assert slab._stream is not None
    with torch.cuda.stream(slab._stream):
        torch.cuda._sleep(100_000_000)
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=1.0, fused=True), Schedule(), 10, None, is_ours=True)
    copies, optimizer.copied = slab.copy([parameter], [buffer])
    buffer.zero_()  # a forward's
    parameter.grad = torch.ones_like(parameter)
    arrived = optimizer.copied
    optimizer.step(0, torch.ones((), device="cuda", dtype=torch.float64), torch.ones((), device="cuda", dtype=torch.float64))
    assert arrived is not None
    arrived.synchronize()
    assert [copy.unique().tolist() for copy in copies] == [[1.0], [1.0]]
    assert parameter.unique().tolist() == [0.0]


MASKED = """
import torch
from torch import nn
import samestep

class Masked(samestep.Task):
    def model(self):
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        layers = nn.TransformerEncoder(layer, 2)
        return nn.ModuleDict({"inward": nn.Embedding(100, 64), "layers": layers, "head": nn.Linear(64, 2)})

    def data(self, split):
        made = torch.Generator().manual_seed(int(split == "train"))
        x = torch.randint(1, 100, (200, 48), generator=made)
        x[:, 30:] *= torch.randint(0, 2, (200, 18), generator=made)
        return {"x": x, "y": x.sum(1) % 2}

    def loss(self, model, batch):
        hidden = model["layers"](model["inward"](batch["x"]), src_key_padding_mask=batch["x"] == 0)
        return nn.functional.cross_entropy(model["head"](hidden[:, 0]).float(), batch["y"], reduction="sum"), len(batch["y"])
"""


@pytest.mark.parametrize("precision", ["no", "tf32", "bf16"])
@pytest.mark.parametrize("attention", ["auto", "efficient"])
def test_attention_with_a_mask_repeats_itself_on_ranks_that_share_a_gpu(
    workplace: Workplace, attention: str, precision: str
) -> None:
    workplace.write("masked.py", MASKED)
    workplace.write(
        "masked.yaml",
        f"task: masked.py:Masked\nglobal_batch_size: 16\nmicro_batch_size: 4\nsteps: 12\noptimizer: {{name: adamw, lr: 1e-3}}\n"
        f"attention: {attention}\nprecision: '{precision}'\ntrack: {{wandb: 'off'}}\n",
    )
    one = workplace.train("masked.yaml", "--run", "one")
    assert one.code == 0, one.err
    assert workplace.train("masked.yaml", "--run", "again").weights == one.weights
    assert on_one_device(workplace, 2, "masked.yaml", "--run", "on-2") == one.weights
