"""The shape of the code: who may import whom, what is public, and where collectives may stand."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import samestep
from conftest import ROOT
from samestep.config import Config, load_config
from samestep.loop import Training

SOURCE = ROOT / "src" / "samestep"
ROWS = [
    ["errors", "randomness"],
    ["runtime", "run"],
    ["task"],
    ["control"],
    ["config", "exact", "sources", "tasks"],
    ["optimizer", "checkpoint", "report", "batches"],
    ["slurm", "evaluation", "checks", "tracking"],
    ["loop"],
    ["session"],
    ["commands"],
    ["cli", "testing"],
    ["__init__"],
    ["__main__"],
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def top(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules that a file imports: of `from folder import module` the module, of `from folder import name` the folder."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            places = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {place if place in MODULES or not place.startswith("samestep") else node.module for place in places}
            found |= {node.module} - MODULES.keys()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_a_row(path: Path) -> None:
    own = top(path)
    for name in imports(path):
        if name.partition(".")[0] == "samestep":
            other = [*name.split("."), "__init__"][1]
            assert other == own or ROW[other] < ROW[own], f"{own} imports {other}"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, one after the other, if there are any."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        found = next((found for other in sorted(graph[name]) if (found := visit(other, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({name: (imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]


def test_few_modules_stand_beside_the_folders() -> None:
    loose = {path.name for path in SOURCE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "evaluation.py", "loop.py", "testing.py"}


def test_the_loop_is_short_and_a_run_has_few_parts() -> None:
    text = (SOURCE / "loop.py").read_text()
    assert len(text.splitlines()) <= 130
    assert len(dataclasses.fields(Training)) <= 16


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_fit_on_a_screen(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > 60} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_collectives_stand_in_exact_and_control_alone(path: Path) -> None:
    if top(path) not in ("exact", "control"):
        talk = [name for name in imports(path) if name.startswith("torch.distributed")]
        assert not [name for name in talk if not name.startswith("torch.distributed.elastic")]  # torchrun's own
    floats = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute) and node.attr == "all_reduce"
    ]
    allowed = 1 if path.name in ("transfer.py", "gradients.py", "sum.py") else 0  # FastSum's own, and two over integers
    assert len(floats) == allowed


def test_nothing_that_a_peer_or_a_file_says_is_unpickled() -> None:
    unpickles = re.compile(r"_object(_list)?\(|\bpickle\.|torch\.load\(")
    assert [path.name for path in FILES if unpickles.search(path.read_text())] == []


def test_only_runtime_reads_rank_and_scheduler_variables() -> None:
    pattern = re.compile(r"SLURM_|\bWORLD_SIZE|LOCAL_RANK|MASTER_ADDR|[\"']RANK[\"']|TORCHELASTIC")
    assert {top(path) for path in FILES if pattern.search(path.read_text())} == {"runtime", "slurm"}


def test_the_loop_asks_nobody_how_many_processes_there_are() -> None:
    text = (SOURCE / "loop.py").read_text()
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    assert not re.search(r"world_size|num_processes|distributed|is_main|rank", code)
    train = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert train.end_lineno is not None
    assert train.end_lineno - train.lineno < 60


def test_what_is_public() -> None:
    assert " ".join(sorted(samestep.__all__)) == "Mix Parquet Task Tokens __version__ exact load main mean step train"
    for name in samestep.__all__:
        assert getattr(samestep, name) is not None


def test_the_config_has_these_keys() -> None:
    assert [field.alias or name for name, field in Config.model_fields.items()] == [
        "task", "with", "seed", "global_batch_size", "micro_batch_size", "steps", "epochs", "drop_last", "converge",
        "optimizer", "schedule", "precision", "attention", "clip", "reduce", "leaves", "compile", "shard", "recompute",
        "device", "threads", "processes",
        "evaluate", "checkpoint", "track", "init", "workers", "watchdog", "audit", "profile", "runs",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_here_loads(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_accelerate_config_leaves_precision_to_the_run(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert settings["mixed_precision"] == "no"
    assert "gradient_accumulation_steps" not in settings


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["launch", "--help"], ["launch", "sead=3", str(ROOT / "configs/seed.yaml")]]
)
def test_torch_is_not_imported_before_a_command_needs_it(words: list[str]) -> None:
    code = (
        "import sys; from samestep.cli import cli\n"
        f"try: cli.main({words!r}, standalone_mode=False)\n"
        "finally: heavy = {'torch', 'datasets', 'wandb', 'accelerate'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_help_shows_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "samestep", "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert "samestep train configs/stdlib.yaml" in done.stdout


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_documents_name_files_that_exist(path: Path) -> None:
    for name in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|sh|md|yaml|sbatch))`", path.read_text()):
        is_the_sites = name == "slurm/before.sh"  # written by whoever needs it
        assert is_the_sites or (ROOT / name).exists() or (SOURCE / name).exists(), name


def test_errors_name_pages_that_exist() -> None:
    named = {page for path in FILES for page in re.findall(r"\((docs/[\w-]+\.md)\)", path.read_text())}
    assert named
    assert {page for page in named if not (ROOT / page).is_file()} == set()


def test_files_stay_small() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 260} == {}
