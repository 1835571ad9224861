"""Teach a language model of transformers a style by LoRA: on the .txt files of a folder, or on made-up ones.

pip install 'samestep[transformers]'; with.base=Qwen/Qwen3-0.6B begins with trained weights, "" with a small model's.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten rows


class Mine(samestep.Task):
    unit = "tokens"

    base: str = ""  # a name on the hub, or a folder
    folder: str = "data"
    context: int = 64
    rank: int = 8

    def data(self, split):
        """Rows of context + 1 tokens, end to end; `samestep evaluate RUN --data test` asks for the third part."""
        texts = [file.read_text() for file in sorted(Path(self.folder).rglob("*.txt"))] or made_up()
        if self.base:
            tokenizer = AutoTokenizer.from_pretrained(self.base)
            tokens = [token for text in texts for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id]]
        else:
            tokens = list("\n".join(texts).encode())
        whole = len(tokens) // (self.context + 1) * (self.context + 1)
        rows = np.array(tokens[:whole]).reshape(-1, self.context + 1)
        return {"tokens": rows[np.isin(np.arange(len(rows)) % 10, PARTS[split])]}

    def model(self):
        if self.base:
            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).train()
        else:
            sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=self.context, **sizes))
        return with_adapters(model, self.rank)

    def loss(self, model, batch):
        scores = model(input_ids=batch["tokens"][:, :-1], use_cache=False).logits.flatten(0, 1)
        return samestep.mean(F.cross_entropy(scores.float(), batch["tokens"][:, 1:].flatten(), reduction="none"))


class Adapter(nn.Module):
    """A linear layer that stays as it is, beside a product of two small ones that are trained (Hu et al., "LoRA", 2021)."""

    def __init__(self, whole, rank):
        super().__init__()
        self.whole = whole
        self.down = nn.Linear(whole.in_features, rank, bias=False)
        self.up = nn.Linear(rank, whole.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # so that training begins with the model as it was

    def forward(self, x):
        return self.whole(x) + 2 * self.up(self.down(x))


def with_adapters(model, rank):
    """The model frozen, with an adapter at each linear layer but the head; peft's are examples/finetune.py's."""
    model.requires_grad_(False)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to put an adapter at; take a model of Llama's kind")
    for name in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Adapter(model.get_submodule(name), rank))
    return model


def made_up():
    rng, words = np.random.default_rng(0), ["sun", "moon", "sea", "hill", "wind", "rain"]
    return [f"the {rng.choice(words)} and the {rng.choice(words)}, the {rng.choice(words)} again" for _ in range(2000)]
