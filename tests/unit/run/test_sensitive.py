"""What looks like a secret is known by its name or by what scanners know, and ordinary sources are not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from conftest import Workplace
from samestep.run.folder import RunFolder
from samestep.run.sensitive import why_secret

DRAWN = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1cD3"
PREFIXES = (
    "AK" + "IA",
    "gh" + "p_",
    "github" + "_pat_",
    "gl" + "pat-",
    "h" + "f_",
    "s" + "k-",
    "xo" + "xb-",
    "AI" + "za",
    "np" + "m_",
)


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.local",
        "prod.env",
        "credentials.json",
        "Secrets.yaml",
        "id_rsa",
        "id_ed25519.pub",
        "a.pem",
        "b.key",
        ".netrc",
    ],
)
def test_some_names_are_enough(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert why_secret(tmp_path / name) == "its name"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_drawn_key_is_found_by_what_stands_before_it(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f'import os\n\nKEY = "{prefix}{DRAWN}"\n')
    assert why_secret(file) == "line 3"


def test_a_private_key_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("-----BEGIN RSA " + "PRIVATE KEY-----\n")
    assert why_secret(file) == "line 1"


@pytest.mark.parametrize(
    "text",
    [
        "KEY = '" + "h" + "f_" + "x" * 40 + "'",  # a placeholder
        "h" + "f_model_name = 3",
        "ta" + f"sk-{DRAWN}",  # within a word
        "weights 5d90f80b1847ebaa054b953dd5626ddf862aa4fc2b75be16b62bec947965ced5",
        "tokenizer.json credentials",
    ],
)
def test_ordinary_text_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(text)
    assert why_secret(file) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o700), (0o027, 0o700), (0o077, 0o700), (0o002, 0o770), (0o007, 0o770)])
def test_a_run_folder_is_its_owners_or_a_groups_that_may_write(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        RunFolder(tmp_path / "runs" / "one").create()
        (tmp_path / "runs" / "old").mkdir(mode=0o755)
        old = stat.S_IMODE((tmp_path / "runs" / "old").stat().st_mode)
        RunFolder(tmp_path / "runs" / "old").create()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "runs" / "one").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "runs" / "old").stat().st_mode) == old  # whoever made it has chosen


@pytest.mark.timeout(120)
def test_a_task_with_a_key_in_it_is_not_kept_beside_its_run_and_that_is_told(workplace: Workplace) -> None:
    body = "from samestep.tasks.regression import Regression\nfrom helper import width\n\n\nclass Mine(Regression): ...\n"
    workplace.write("mine.py", body)
    key = "h" + "f_" + DRAWN
    workplace.write("helper.py", f'width = 2\nkey = "{key}"\n')
    (workplace.path / "mine.py").chmod(0o640)
    workplace.write(
        "mine.yaml",
        "task: mine.py:Mine\nglobal_batch_size: 8\nmicro_batch_size: 8\nsteps: 2\noptimizer: {name: sgd, lr: 1e-3}\n",
    )
    done = workplace.train("mine.yaml", "--run", "one")
    assert "note: left out of sources/ of the run folder, as what looks like a secret: helper.py (line 2)" in done.out, done.err
    folder = workplace.path / "runs" / "one"
    assert [path.name for path in (folder / "sources").iterdir()] == ["mine.py"]
    assert stat.S_IMODE((folder / "sources" / "mine.py").stat().st_mode) == 0o640
    assert not [path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    workplace.write("helper.py", f'width = 3\nkey = "{key}"\n')
    again = workplace.train("mine.yaml", "--run", "one", "steps=4")
    assert "the code has changed since the last start (helper.py)" in again.out
