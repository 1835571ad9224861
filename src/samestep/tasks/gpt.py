"""A byte-level GPT: pre-norm transformer blocks with learned positions, as GPT-2 has them (Radford et al., 2019, 2.3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

NUM_BYTES = 256


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        split = self.inward(x).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: torch.Tensor = self.outward(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: torch.Tensor = x + self.dropout(self.narrow(F.gelu(self.widen(self.mlp_norm(x)))))
        return out


class GPT(nn.Module):
    """Bytes in, logits of the next byte out: (rows, length) of integers to (rows, length, 256)."""

    def __init__(self, context: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.bytes = nn.Embedding(NUM_BYTES, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        blocks = [Block(width, heads, dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_BYTES, bias=False)
        self.apply(self._initialise)
        for block in blocks:  # the residual sum of 2 × layers terms keeps its variance
            for last in (block.attention.outward.weight, block.narrow.weight):
                nn.init.normal_(last, std=0.02 / (2 * layers) ** 0.5)
        self.head.weight = self.bytes.weight

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        hidden = self.dropout(self.bytes(x) + self.positions(places))
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits

    @torch.no_grad()
    def generate(self, prompt: bytes, length: int, generator: torch.Generator, temperature: float = 0.8) -> bytes:
        """Continue a prompt by `length` sampled bytes."""
        device = self.head.weight.device
        text = list(prompt)
        for _ in range(length):
            window = torch.tensor([text[-self.context :]], device=device)
            chances = F.softmax(self(window)[0, -1].float().cpu() / temperature, dim=-1)
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
        return bytes(text)
