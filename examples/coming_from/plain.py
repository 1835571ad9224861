"""A plain PyTorch script, as many begin: one process, one device. `plain_as_task.py` is the same with samestep."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, WARMUP = 10, 20

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

found = load_digits()
images, digits = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
held_out = torch.arange(len(digits)) % 5 == 0
train_set = DataLoader(TensorDataset(images[~held_out], digits[~held_out]), batch_size=64, shuffle=True)
eval_set = DataLoader(TensorDataset(images[held_out], digits[held_out]), batch_size=64)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_set) - WARMUP)
schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [WARMUP])

for epoch in range(EPOCHS):
    model.train()
    for image, digit in train_set:
        loss = F.cross_entropy(model(image.to(device)), digit.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    model.eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for image, digit in eval_set:
            scores = model(image.to(device)).cpu()
            total += F.cross_entropy(scores, digit, reduction="sum").item()
            right += (scores.argmax(1) == digit).sum().item()
    num_rows = len(eval_set.dataset)
    print(f"epoch {epoch + 1}  eval_loss {total / num_rows:.4f}  eval_accuracy {right / num_rows:.4f}")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "digits.pt")
