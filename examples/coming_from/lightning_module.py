"""A Lightning module and its Trainer. `lightning_as_task.py` is the same with samestep.

pip install lightning
pip install 'samestep[digits]'
python examples/coming_from/lightning_module.py
"""

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Digits(lightning.LightningModule):
    def __init__(self, width=64, lr=3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8))
        self.decoder = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 64))

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("eval_loss", F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [
                {"params": self.encoder.parameters(), "weight_decay": 0.0},
                {"params": self.decoder.parameters(), "weight_decay": 0.01},
            ],
            lr=self.hparams.lr,
        )


lightning.seed_everything(0, workers=True)
images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
held_out = torch.arange(len(images)) % 5 == 0
trainer = lightning.Trainer(
    max_epochs=20,
    gradient_clip_val=1.0,
    callbacks=[
        EarlyStopping("eval_loss", patience=3),
        ModelCheckpoint(monitor="eval_loss", save_last=True),
    ],
    deterministic=True,
    enable_progress_bar=False,
)
trainer.fit(
    Digits(),
    DataLoader(TensorDataset(images[~held_out]), batch_size=64, shuffle=True),
    DataLoader(TensorDataset(images[held_out]), batch_size=64),
)
print(f"eval_loss {trainer.callback_metrics['eval_loss']:.4f}")
