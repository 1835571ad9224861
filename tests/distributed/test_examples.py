"""The examples: each gives the same bits on one, two and three processes, learns what it is about, and is what it says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import Ranks

import samestep
from conftest import ROOT, Workplace
from samestep.run.metric_rows import timeless
from samestep.task.loading import load_task

EXAMPLES = ROOT / "examples"
LANGUAGE_MODELS = ("peft", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")
has_transformers = importlib.util.find_spec("peft") is not None
needs_transformers = pytest.mark.skipif(
    not has_transformers, reason="transformers and peft are not installed; the extra `transformers` has them"
)
WORDS = ("wool", "iron", "glass", "clay", "wood", "salt", "silk", "sand")
SMALL = {  # what makes each example a matter of seconds
    "images.py": "folder=photos classes=2 size=8 channels=4 workers=0 global_batch_size=12 micro_batch_size=3",
    "finetune.py": "file=mine.jsonl base=llama context=24 global_batch_size=12 micro_batch_size=2",
    "gan.py": "width=16",
    "coming_from/plain_as_task.py": "",
    "coming_from/accelerate_as_task.py": "micro_batch_size=16",
    "coming_from/lightning_as_task.py": "",
}
BITS = {
    **{name: (name, words) for name, words in SMALL.items()},
    "finetune.py, packed, all weights": ("finetune.py", SMALL["finetune.py"].replace("llama", "gpt2") + " packed=true lora=0"),
}


class Place:
    """A folder with the examples and what they read, and ranks to start there."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self._ranks = path, ranks
        shutil.copytree(EXAMPLES, path / "examples")

    def train(self, name: str, run: str, words: str, size: int = 1) -> str:
        """The weights' hash at the end of a run of an example."""
        line = [f"examples/{name}", "--run", run, "track={every: 1, wandb: 'off'}", *words.split()]
        return self._said({"name": run, "world_size": size, "words": line}).rpartition("weights ")[2]

    def run(self, script: str) -> str:
        """What a script prints."""
        return self._said({"name": "script", "world_size": 1, "words": [], "script": script})

    def _said(self, job: dict[str, Any]) -> str:
        answer = self._ranks.ask({"folder": str(self.path), **job})
        assert set(answer["codes"]) == {0}, answer["said"]
        said: str = answer["said"][0][0].rstrip("\n")
        return said

    def rows(self, run: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines())
        return [timeless(row) for row in rows]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks("PIL.Image", "sklearn.datasets", *(LANGUAGE_MODELS if has_transformers else ()))
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> Place:
    place = Place(tmp_path_factory.mktemp("examples"), ranks)
    _draw_photos(place.path / "photos")
    _write_answers(place.path / "mine.jsonl")
    if has_transformers:
        _make_language_models(place.path)
    return place


def _draw_photos(folder: Path) -> None:
    """Stripes that lie, and stripes that stand."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, number in (("train", 30), ("eval", 10)):
        for kind in ("lying", "standing"):
            (folder / split / kind).mkdir(parents=True)
            for index in range(number):
                stripes = np.zeros((12, 12, 3))
                stripes[:: rng.integers(2, 4)] = 180
                stripes = stripes if kind == "lying" else stripes.transpose(1, 0, 2)
                Image.fromarray((stripes + rng.uniform(0, 70, stripes.shape)).astype(np.uint8)).save(
                    folder / split / kind / f"{index}.png"
                )


def _write_answers(file: Path) -> None:
    """A word to repeat, and as many times: answers of uneven length."""
    rows = [(word, number) for word in WORDS for number in (1, 2, 3, 4)] * 4
    lines = [json.dumps({"prompt": f"{word} {number}:", "answer": f" {word}" * number}) for word, number in rows]
    file.write_text("\n".join(lines))


def _make_language_models(folder: Path) -> None:
    """Two tiny ones with a tokenizer of their own."""
    import tokenizers
    import torch
    import transformers

    for name, config_class, sizes in (
        ("llama", transformers.LlamaConfig, {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}),
        ("gpt2", transformers.GPT2Config, {"n_embd": 32, "n_head": 2, "n_positions": 32}),
    ):
        found = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
        found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>", "<end>"], initial_alphabet=alphabet, show_progress=False
        )
        found.train_from_iterator([f"{word} {word}" for word in WORDS], trainer)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", eos_token="<end>")
        tokenizer.save_pretrained(folder / name)
        config = config_class(vocab_size=len(tokenizer), num_hidden_layers=2, eos_token_id=1, bos_token_id=1, **sizes)
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_transformers) if "finetune" in case else case for case in BITS]
)
def test_an_example_gives_the_same_bits_on_one_two_and_three_processes(place: Place, case: str) -> None:
    name, words = BITS[case]
    runs = [f"{case.replace('/', '-')}-{size}" for size in (1, 2, 3)]
    weights = [place.train(name, run, f"{words} epochs=null steps=2", size) for size, run in enumerate(runs, 1)]
    assert len(set(weights)) == 1
    first, *others = [place.rows(run) for run in runs]
    assert [row["step"] for row in first if "loss" in row] == [1, 2]
    assert all(rows == first for rows in others)


@pytest.mark.long
@pytest.mark.parametrize("case", BITS)
def test_verify_says_that_an_example_gives_the_same_bits(workplace: Workplace, place: Place, case: str) -> None:
    name, words = BITS[case]
    workplace.path = place.path
    done = workplace.samestep("verify", f"examples/{name}", "--processes", "1,2,3", "--steps", "2", *words.split())
    assert done.code == 0, done.err
    assert done.out.endswith("all the same: 2 steps on 1, 2, 3 processes\n")


def test_the_images_are_told_apart(place: Place) -> None:
    place.train("images.py", "told-apart", f"{SMALL['images.py']} channels=8 epochs=null steps=60 schedule.warmup=5")
    assert place.rows("told-apart")[-1]["eval_accuracy"] > 0.9


def test_the_generated_points_come_near_the_ring(place: Place) -> None:
    place.train("gan.py", "ring", "width=32 steps=400 evaluate.every=50 optimizer.generator.lr=2e-3")
    missed = [row["eval_missed"] for row in place.rows("ring") if "eval_missed" in row]
    assert missed[-1] < 0.5 * missed[0]


def _last(text: str, name: str) -> float:
    return float(text.rpartition(f"{name} ")[2].split()[0])


@pytest.mark.parametrize(("script", "task"), [
    ("plain.py", "plain_as_task.py"),
    ("accelerate_script.py", "accelerate_as_task.py"),
    ("flags.py", "flags_as_task.py"),
    pytest.param("lightning_module.py", "lightning_as_task.py", marks=pytest.mark.skipif(
        not importlib.util.find_spec("lightning"), reason="Lightning is not installed: its script is not run beside its task"
    )),
])  # fmt: skip
def test_a_script_and_its_task_come_to_a_similar_loss(place: Place, script: str, task: str) -> None:
    printed = place.run(f"examples/coming_from/{script}")
    place.train(f"coming_from/{task}", task, "")
    last = [row for row in place.rows(task) if "eval_loss" in row][-1]
    assert last["eval_loss"] == pytest.approx(_last(printed, "eval_loss"), rel=0.25)
    if "eval_accuracy" in last:
        assert last["eval_accuracy"] == pytest.approx(_last(printed, "eval_accuracy"), abs=0.03)


def test_the_task_that_was_a_lightning_module_trains_without_lightning(place: Place) -> None:
    place.train("coming_from/lightning_as_task.py", "autoencoder", "")
    rows = [row["eval_loss"] for row in place.rows("autoencoder") if "eval_loss" in row]
    assert rows[-1] < 0.025 < rows[0]


@needs_transformers
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, about a name of transformers
@pytest.mark.parametrize("lora", [4, 0])
def test_what_export_writes_is_read_by_from_pretrained(place: Place, monkeypatch: pytest.MonkeyPatch, lora: int) -> None:
    import peft
    import torch
    import transformers

    from samestep.commands.export import export
    from samestep.commands.find_run import recorded

    place.train("finetune.py", f"tuned-{lora}", f"{SMALL['finetune.py']} lora={lora} epochs=null steps=3 lr=1e-2")
    monkeypatch.chdir(place.path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export(*recorded(f"tuned-{lora}"), Path(f"exported-{lora}"), None)
    kind = peft.AutoPeftModelForCausalLM if lora else transformers.AutoModelForCausalLM
    read, base = kind.from_pretrained(f"exported-{lora}"), transformers.AutoModelForCausalLM.from_pretrained("llama")
    tokens = torch.arange(20, 30)[None]
    with torch.no_grad():
        given, expected, before = (model.eval()(tokens).logits for model in (read, samestep.load(f"tuned-{lora}"), base))
    assert torch.equal(given, expected)
    assert not torch.allclose(given, before)
    weights = {path.name for path in (place.path / f"exported-{lora}").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors" if lora else "model.safetensors"}


@needs_transformers
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_loss_is_a_mean_over_the_predicted_tokens_however_uneven(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(place.path)
    task = load_task("examples/finetune.py:Finetune", {"base": "llama", "file": "mine.jsonl", "context": 24})
    model, rows = task.model().eval(), task.data("train")
    assert rows is not None
    some = [rows[number] for number in range(6)]
    loss, weight, *_ = task.loss(model, task.collate(some))
    alone = []
    for row in some:
        tokens, labels = torch.tensor([row["tokens"]]), torch.tensor([row["labels"]])
        answer = int((labels != -100).sum())
        alone.append((answer, model(input_ids=tokens, labels=labels).loss * answer))
    assert len({answer for answer, _ in alone}) > 1
    assert weight == sum(answer for answer, _ in alone)
    torch.testing.assert_close(loss, sum(one for _, one in alone))
