"""What needs a CUDA device; without one each test says so and is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from conftest import Workplace

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
