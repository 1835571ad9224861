"""What comes with samestep besides its modules: launch/, slurm/, configs/, templates/, of a checkout or of the package."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).parents[1] / "shipped"
_CHECKOUT = Path(__file__).parents[3]


def shipped() -> Path:
    """The folder that holds launch/, slurm/, configs/ and templates/."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def is_checkout(root: Path) -> bool:
    """Whether launch/setup.sh in `root` makes a .venv there; elsewhere it takes the Python that samestep is installed in."""
    return (root / "src/samestep").is_dir()


def shipped_configs() -> list[str]:
    """The configs that may be written by their bare name."""
    return sorted(path.stem for path in (shipped() / "configs").glob("*.yaml"))


def shipped_config(path: Path) -> Path | None:
    """The config that comes with samestep under this name, `stdlib` or `configs/stdlib.yaml`; None if there is none."""
    name = path.stem if path == Path("configs") / f"{path.stem}.yaml" else str(path)
    return shipped() / "configs" / f"{name}.yaml" if name in shipped_configs() else None
