"""Fine-tune a language model of Hugging Face's on prompts and answers of your own, with LoRA or whole.

pip install 'samestep[transformers]'
python examples/finetune.py --run tuned file=mine.jsonl base=gpt2 lr=2e-4     # a line: {"prompt": "…", "answer": "…"}
samestep export tuned adapters                    # read by peft.AutoPeftModelForCausalLM.from_pretrained("adapters")
"""

import itertools

import datasets
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import samestep

LEFT_OUT = -100  # the label of a token that is not predicted


class Finetune(samestep.Task):
    unit = "tokens"

    base: str = "gpt2"  # a name on the hub, or a folder
    file: str = "mine.jsonl"
    context: int = 512
    packed: bool = False  # documents end to end in full rows; otherwise a row each, of which the answer alone is predicted
    lora: int = 8  # the adapters' rank; 0 trains all weights
    checkpointing: bool = True  # less memory for a third more time: activations are computed again in the backward

    def data(self, split):
        rows = datasets.load_dataset("json", data_files=self.file, split="train").train_test_split(0.1, seed=0)
        rows = rows["train" if split == "train" else "test"]
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        prompts = tokenizer(list(rows["prompt"])).input_ids
        answers = tokenizer(list(rows["answer"]), add_special_tokens=False).input_ids
        pairs = [(prompt, [*answer, tokenizer.eos_token_id]) for prompt, answer in zip(prompts, answers, strict=True)]
        if self.packed:
            text = list(itertools.chain.from_iterable(prompt + answer for prompt, answer in pairs))
            starts = range(0, len(text) - self.context + 1, self.context)
            tokens = labels = [text[start : start + self.context] for start in starts]
        else:
            tokens = [(prompt + answer)[: self.context] for prompt, answer in pairs]
            labels = [([LEFT_OUT] * len(prompt) + answer)[: self.context] for prompt, answer in pairs]
        return datasets.Dataset.from_dict({"tokens": tokens, "labels": labels})

    def collate(self, rows):
        """Pad the rows of a micro-batch to the longest of them."""
        tokens, labels = ([torch.as_tensor(row[name]) for row in rows] for name in ("tokens", "labels"))
        return {
            "tokens": pad_sequence(tokens, batch_first=True),
            "mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=LEFT_OUT),
        }

    def model(self):
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        if self.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if self.lora:
            adapters = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=self.lora, lora_alpha=2 * self.lora)
            model = get_peft_model(model, adapters)
        return model.train()  # from_pretrained leaves it in eval()

    def export(self, folder):
        """`samestep export` writes the tokenizer beside the weights."""
        AutoTokenizer.from_pretrained(self.base).save_pretrained(folder)

    def loss(self, model, batch):
        """The sum over the predicted tokens and their number: the step's loss is a mean over those of the global batch."""
        labels = batch["labels"][:, 1:].flatten()
        logits = model(input_ids=batch["tokens"], attention_mask=batch["mask"], use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=LEFT_OUT, reduction="sum")
        return loss, (labels != LEFT_OUT).sum()


samestep.main(
    Finetune,
    global_batch_size=32,
    micro_batch_size=4,
    epochs=3,
    optimizer={"name": "adamw", "lr": 2e-4},
    schedule={"name": "cosine", "warmup": 20},
    clip=1.0,
    evaluate={"every": 100},
)
