"""The config is strict, says in one line what is wrong, and undoes YAML 1.1's surprises."""

import json
from pathlib import Path

import pytest

from samestep.config import changes_on_resume, load_config, to_text
from samestep.errors import UsageError

GOOD = """
task: regression
global_batch_size: 32
micro_batch_size: 8
steps: 10
optimizer: {name: adam, lr: 1e-3}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return list(caught.value.lines)


def test_yaml_scalars_mean_what_they_say(good: Path) -> None:
    config, _ = load_config(good, ["track.wandb=off", "precision=no", "optimizer.lr=3e-4", "optimizer.eps=1E-9"])
    assert (config.track.wandb, config.precision) == ("off", "no")
    assert config.optimizers["optimizer"].arguments == {"lr": 3e-4, "eps": 1e-9}


def test_later_wins_and_each_value_knows_where_it_came_from(good: Path) -> None:
    config, sources = load_config(good, ["seed=1", "seed=2"])
    assert config.seed == 2
    assert sources["seed"] == "command line"
    assert sources["optimizer.lr"] == str(good)


def test_the_resolved_text_loads_as_the_same_config(good: Path, tmp_path: Path) -> None:
    config, sources = load_config(good, ["track.notes='two\n\n lines: yes # no'", "track.tags=['1e-3', off]", "precision=bf16"])
    again = tmp_path / "config.yaml"
    again.write_text(to_text(config, sources))
    assert load_config(again)[0] == config
    assert "# command line\nprecision: bf16\n" in again.read_text()


@pytest.mark.parametrize("notes", ["a\n# b\nc: d", "\n", " a\r\n  b\n", "a\u2028b", "x: y #z"])
def test_a_block_of_several_origins_says_that_of_each_of_its_keys(good: Path, tmp_path: Path, notes: str) -> None:
    overrides = ["evaluate={every: 3}", "optimizer.lr=1e-4", f"track.notes={json.dumps(notes)}", "shard=true"]
    config, sources = load_config(good, overrides)
    assert sources["evaluate.every"] == "command line"
    assert "evaluate" not in sources
    again = tmp_path / "config.yaml"
    again.write_text(text := to_text(config, sources))
    assert load_config(again)[0] == config
    assert f"optimizer:\n  # {good}\n  name: adam\n  # command line\n  lr: 0.0001\n" in text
    assert "evaluate:\n  # command line\n  every: 3\n  # default\n  batches: null\n" in text
    assert "# command line\nshard: true\n" in text
    assert "# default\ncheckpoint: {" in text
    plain = to_text(*load_config(good, [*overrides, "track.notes=plain"]))
    assert text.count("\n") == plain.count("\n")  # a value is a line, or what it holds could be taken for an origin


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stepz=1"], "stepz: unknown key; did you mean steps?"),
        (["track.wanbd=off"], "track.wanbd: unknown key; did you mean wandb?"),
        (["seed=abc"], "seed: found 'abc'; write an integer"),
        (["seed=1.5"], "seed: found 1.5; write an integer"),
        (["epochs=2"], "found steps=10 and epochs=2; write exactly one of them, null for the other"),
        (["steps=null"], "found neither steps nor epochs; write exactly one of them"),
        (["global_batch_size=30"], "which is no multiple of micro_batch_size (8); write 24 or 32"),
        (["leaves=3"], "leaves: found 3; write a divisor of 4: 1, 2, 4"),
        (["precision=fp8"], "precision: found 'fp8'; write 'no', 'tf32', 'bf16' or 'fp16'"),
        (["optimizer.lr=-1"], "optimizer.lr: found -1; write a number greater than 0"),
        (
            ["checkpoint.best=loss:most"],
            "checkpoint.best: found 'loss:most'; write METRIC, of which less is better, or METRIC:max",
        ),
        (["steps"], "steps: found no key=value; write steps=VALUE"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(good: Path, overrides: list[str], words: str) -> None:
    lines = refusal(good, *overrides)
    assert len(lines) == 1
    assert words in lines[0]


def test_each_mistake_has_its_line(good: Path) -> None:
    assert len(refusal(good, "stepz=1", "seed=x", "clip=0")) == 3


def test_a_missing_file_names_its_neighbour(good: Path) -> None:
    assert "did you mean" in refusal(good.with_name("god.yaml"))[0]


def test_a_broken_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("task: a\nsteps: [1\n")
    assert "broken.yaml line 3: not YAML" in refusal(path)[0]


def test_what_may_change_on_resume(good: Path) -> None:
    before, _ = load_config(good)
    for free in ("steps=20", "track.every=1", "checkpoint.keep=5", "processes=3", "workers=2"):
        assert changes_on_resume(before, load_config(good, [free])[0]) == ([], [])
    for maths in ("seed=1", "steps=5", "optimizer.lr=1", "micro_batch_size=4", "with.features=3"):
        refused, _ = changes_on_resume(before, load_config(good, [maths])[0])
        assert len(refused) == 1
    assert "the run has 0, found 1" in changes_on_resume(before, load_config(good, ["seed=1"])[0])[0][0]
    assert changes_on_resume(before, load_config(good, ["threads=2"])[0])[1]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"seed: 1{GOOD}seed: 2\n", ["seed: found on lines 1 and 7; write it once"]),
        (f"{GOOD}'steps': 20\nseed: 1\n\"seed\": 1\nseed: 3\n", [
            "steps: found on lines 5 and 7; write it once", "seed: found on lines 8, 9 and 10; write it once"]),
        (GOOD.replace("lr: 1e-3", "lr: 1e-3,\n  lr: 1e-2"), ["optimizer.lr: found on lines 6 and 7; write it once"]),
        (f"{GOOD}track:\n  every: 1\n  tags: []\n  every: 2\n", ["track.every: found on lines 8 and 10; write it once"]),
        (f"{GOOD}with: {{rows: [{{a: 1, a: 2}}]}}\n", ["with.rows.0.a: found on lines 7 and 7; write it once"]),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, lines: list[str]) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    assert refusal(path) == [f"{path}: {line}" for line in lines]


def test_a_key_that_stands_twice_in_an_override_is_refused(good: Path) -> None:
    found = refusal(good, "optimizer={name: sgd, lr: 1, lr: 2}")
    assert found == ["optimizer={name: sgd, lr: 1, lr: 2}: lr: found on lines 1 and 1; write it once"]


def test_a_merged_key_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(GOOD.replace("optimizer: {", "optimizer: {<<: {lr: 1, eps: 1e-6}, "))
    assert load_config(path)[0].optimizers["optimizer"].arguments == {"lr": 1e-3, "eps": 1e-6}


def test_a_config_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(f"{GOOD}track: {{notes: caf\u00e9}}\n".encode("latin-1"))
    assert refusal(path) == [f"{path} line 7: found 0xe9, which is not UTF-8; save the file as UTF-8"]


def test_a_control_character_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bell.yaml"
    path.write_text(f"{GOOD}seed: \a1\n")
    assert refusal(path) == [f"{path} line 7: not YAML: found the character '\\x07'"]
