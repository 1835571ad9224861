"""A script with Accelerate: several processes, gradient accumulation. `accelerate_as_task.py` is the same with samestep.

pip install 'samestep[digits]'
accelerate launch examples/coming_from/accelerate_script.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10

set_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)

found = load_digits()
images, digits = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(found.target)
held_out = torch.arange(len(digits)) % 5 == 0
train_set = DataLoader(TensorDataset(images[~held_out], digits[~held_out]), batch_size=32, shuffle=True)
eval_set = DataLoader(TensorDataset(images[held_out], digits[held_out]), batch_size=32)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS * len(train_set) // 2)
model, optimizer, train_set, eval_set, schedule = accelerator.prepare(model, optimizer, train_set, eval_set, schedule)

for epoch in range(EPOCHS):
    model.train()
    for image, digit in train_set:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(image), digit)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    model.eval()
    losses, rights = [], []
    for image, digit in eval_set:
        with torch.no_grad():
            scores = model(image)
        scores, digit = accelerator.gather_for_metrics((scores, digit))
        losses.append(F.cross_entropy(scores, digit, reduction="none"))
        rights.append((scores.argmax(1) == digit).float())
    eval_loss, accuracy = torch.cat(losses).mean().item(), torch.cat(rights).mean().item()
    accelerator.print(f"epoch {epoch + 1}  eval_loss {eval_loss:.4f}  eval_accuracy {accuracy:.4f}")
    accelerator.save_state("digits-state")
