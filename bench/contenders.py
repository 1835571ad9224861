"""The peers' loops over one workload, each as its own documentation writes it: `python contenders.py NAME WORKLOAD STEPS`.

Prints the loss that it has come to. $BENCH_ACCUMULATE micro-batches make a step; under torchrun it runs on several processes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from workloads import WORKLOADS, Workload

ACCUMULATE = int(os.environ.get("BENCH_ACCUMULATE", 1))
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))


def plain(work: Workload, steps: int) -> nn.Module:
    """What a beginner writes, on tensors in memory; with several processes DDP, without no_sync."""
    dataset = TensorDataset(*work.data())
    sampler: DistributedSampler[Any] | None = None
    model = train_on = work.model()
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo")
        train_on = nn.parallel.DistributedDataParallel(model)
        sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=work.batch, shuffle=sampler is None, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr)
    done, running = 0, 0.0
    optimizer.zero_grad()
    for epoch in range(10**6):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for number, (x, y) in enumerate(loader, 1):
            loss = work.loss(train_on, x, y)
            (loss / ACCUMULATE if ACCUMULATE > 1 else loss).backward()
            running += loss.item()
            if number % ACCUMULATE:
                continue
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                return model
    raise AssertionError


def accelerate(work: Workload, steps: int) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    loader = DataLoader(TensorDataset(*work.data()), batch_size=work.batch, shuffle=True)
    optimizer = torch.optim.AdamW((model := work.model()).parameters(), lr=work.lr)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    done, running = 0, 0.0
    while True:
        for x, y in loader:
            with accelerator.accumulate(prepared):
                loss = work.loss(prepared, x, y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            running += loss.item()
            done += accelerator.sync_gradients
            if done == steps:
                return model


def fabric(work: Workload, steps: int) -> nn.Module:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=PROCESSES, strategy="ddp" if PROCESSES > 1 else "auto")
    fabric.launch()
    loader = DataLoader(TensorDataset(*work.data()), batch_size=work.batch, shuffle=True)
    optimizer = torch.optim.AdamW((bare := work.model()).parameters(), lr=work.lr)
    model, optimizer = fabric.setup(bare, optimizer)
    loader = fabric.setup_dataloaders(loader)
    done, running = 0, 0.0
    while True:
        for number, (x, y) in enumerate(loader, 1):
            waits = number % ACCUMULATE != 0
            with fabric.no_backward_sync(model, enabled=waits):
                loss = work.loss(model, x, y)
                fabric.backward(loss / ACCUMULATE if ACCUMULATE > 1 else loss)
            running += loss.item()
            if waits:
                continue
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                return bare


def lightning(work: Workload, steps: int) -> nn.Module:
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger

    class Module(L.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = work.loss(self.model, *batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=work.lr)

    loader = DataLoader(TensorDataset(*work.data()), batch_size=work.batch, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu", devices=PROCESSES, strategy="ddp" if PROCESSES > 1 else "auto", max_steps=steps, max_epochs=-1,
            accumulate_grad_batches=ACCUMULATE, log_every_n_steps=10, logger=CSVLogger(folder), enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        module = Module()
        trainer.fit(module, loader)
        return module.model


def trainer(work: Workload, steps: int) -> nn.Module:
    import transformers

    class Rows(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.x, self.y = work.data()

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, row: int) -> Any:
            return {"x": self.x[row], "y": self.y[row]}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return {"loss": work.loss(self.model, x, y)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=work.batch, gradient_accumulation_steps=ACCUMULATE,
            learning_rate=work.lr, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=0.0, logging_steps=10,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        model = Wrapped()
        transformers.Trainer(model=model, args=arguments, train_dataset=Rows()).train()
        return model.model


CONTENDERS: dict[str, Callable[[Workload, int], nn.Module]] = {
    "plain": plain, "accelerate": accelerate, "fabric": fabric, "lightning": lightning, "trainer": trainer,
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, workload, steps = sys.argv[1], WORKLOADS[sys.argv[2]], int(sys.argv[3])
    model = CONTENDERS[name](workload, steps)
    print(f"score {workload.score(model)}", flush=True)


main()
