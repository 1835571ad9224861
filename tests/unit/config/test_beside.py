"""A config's files are looked for here and beside it, and what is nowhere says where it was looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from samestep.config import load_config
from samestep.errors import UsageError
from samestep.session import in_user_code
from samestep.task.loading import load_task

TASK = """
import pathlib
import torch
from samestep import Task
class Mine(Task):
    words: str = "words.txt"
    def data(self, split):
        return {"x": torch.ones(len(pathlib.Path(self.words).read_text()), 1)}
    def model(self):
        return torch.nn.Linear(1, 1)
    def loss(self, model, batch):
        return model(batch["x"]).sum(), len(batch["x"])
def rate(step): return 1.0
"""
CONFIG = """
task: mine.py:Mine
with: {words: three.txt}
init: first.safetensors
global_batch_size: 16
micro_batch_size: 8
steps: 20
optimizer: {name: sgd, lr: 1e-5}
schedule: mine.py:rate
track: {also: ["mine.py:Mine"], notes: none.txt}
runs: runs.d
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and what it names, below the one where somebody works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project/runs.d").mkdir(parents=True)
    for name, text in (("mine.py", TASK), ("mine.yaml", CONFIG), ("three.txt", "abc"), ("first.safetensors", "")):
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


@pytest.mark.timeout(60)
def test_what_a_config_names_is_found_beside_it(project: Path) -> None:
    config, _ = load_config("project/mine.yaml")
    assert (config.task, config.fields, config.init) == (
        "project/mine.py:Mine", {"words": "project/three.txt"}, "project/first.safetensors",
    )  # fmt: skip
    assert (config.schedule.name, config.track.also) == ("project/mine.py:rate", ["project/mine.py:Mine"])
    assert (config.track.notes, config.runs) == ("none.txt", "runs.d")
    assert len(load_task(config.task, config.fields).data("train")["x"]) == 3
    assert load_config("project/mine.yaml", ["with.words=gone.txt"])[0].fields == {"words": "gone.txt"}


@pytest.mark.timeout(60)
def test_what_is_here_comes_before_what_lies_beside(project: Path) -> None:
    Path("three.txt").write_text("abcd")
    config, _ = load_config("project/mine.yaml")
    assert config.fields == {"words": "three.txt"}
    (project / "mine.py").unlink()
    with pytest.raises(UsageError) as raised:
        load_task(load_config("project/mine.yaml")[0].task, {})
    here = project.parent
    assert str(raised.value) == f"task: found no file mine.py in {here} or beside the config; write path/to/file.py:Class"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_data_opens_says_where_it_was_looked_for(project: Path, is_there: bool) -> None:
    if is_there:
        (project / "words.txt").write_text("abc")
    task = load_task("project/mine.py:Mine", {})
    with pytest.raises(FileNotFoundError) as raised:
        task.data("train")
    said = in_user_code(raised.value)
    there = f", and {project}/words.txt is there: write Path(__file__).parent / 'words.txt'" if is_there else ""
    assert said.endswith(f"in data; it was looked for in {project.parent}{there}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from .other import x", "task: pkg/tasks.py is a file of a package, and imports relatively; write pkg.tasks:Class"),
        ("import none_of_these", "task: pkg/tasks.py imports none_of_these, which is not installed here"),
        ("raise ModuleNotFoundError('install it anew')", "cannot be imported: ModuleNotFoundError: install it anew, at "),
        ("raise ImportError('needs a newer one')", "cannot be imported: ImportError: needs a newer one, at "),
    ],
)  # fmt: skip
def test_an_import_that_fails_says_its_own_words(project: Path, line: str, said: str) -> None:
    Path("pkg").mkdir()
    Path("pkg/tasks.py").write_text(line + TASK)
    with pytest.raises(UsageError) as raised:
        load_task("pkg/tasks.py:Mine", {})
    assert said in str(raised.value)
