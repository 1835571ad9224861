"""Classify texts with a model of transformers: on .csv files with the columns text and label, or on made-up ones.

pip install 'samestep[transformers]'; with.base=distilbert-base-uncased begins with trained weights, "" with a small BERT's.
"""

import csv
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten texts


class Mine(samestep.Task):
    base: str = ""  # a name on the hub, or a folder
    folder: str = "data"
    classes: int = 2  # labels are numbers from 0
    context: int = 64

    def data(self, split):
        """A list of rows; `samestep evaluate RUN --data test` asks for the third part."""
        files = sorted(Path(self.folder).glob("*.csv"))
        rows = [
            (row["text"], int(row["label"])) for file in files for row in csv.DictReader(file.read_text().splitlines(True))
        ] or made_up()
        rows = [row for number, row in enumerate(rows) if number % 10 in PARTS[split]]
        tokens = self.tokens([text for text, _ in rows])
        return [{"tokens": row, "label": label} for row, (_, label) in zip(tokens, rows, strict=True)]

    def tokens(self, texts):
        if self.base:
            return AutoTokenizer.from_pretrained(self.base)(texts, truncation=True, max_length=self.context).input_ids
        return [[1 + byte for byte in text.encode()][: self.context] or [1] for text in texts]

    def collate(self, rows):
        """Pads the rows of a micro-batch to its longest."""
        tokens = [torch.tensor(row["tokens"]) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        return {
            "tokens": pad_sequence(tokens, batch_first=True),
            "mask": mask,
            "label": torch.tensor([row["label"] for row in rows]),
        }

    def model(self):
        if self.base:
            return AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=self.classes).train()
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        small = BertConfig(vocab_size=257, max_position_embeddings=self.context, num_labels=self.classes, **sizes)
        return BertForSequenceClassification(small)

    def export(self, folder):
        """`samestep export RUN FOLDER` writes the tokenizer beside the weights."""
        if self.base:
            AutoTokenizer.from_pretrained(self.base).save_pretrained(folder)

    def loss(self, model, batch):
        scores = model(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits
        return samestep.mean(F.cross_entropy(scores, batch["label"], reduction="none"))

    def metrics(self, model, batch):
        scores, label = model(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits, batch["label"]
        loss = F.cross_entropy(scores, label, reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == label)}


def made_up():
    rng, words = np.random.default_rng(0), (["dull", "slow", "poor"], ["bright", "swift", "fine"])
    labels = rng.integers(0, 2, 2000).tolist()
    return [(f"a {rng.choice(words[label])} and {rng.choice(words[label])} film", label) for label in labels]
