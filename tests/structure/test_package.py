"""What is said in several places is the same: the version, the licence, the reference of the config."""

from __future__ import annotations

import sys
import tomllib

import pytest
import yaml

import samestep
from conftest import ROOT
from samestep.config.meanings import MEANINGS
from samestep.config.reference import Key, keys

sys.path.insert(0, str(ROOT / "docs"))
import make_config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert {PROJECT["version"], citation["version"], newest.removeprefix("## ")} == {samestep.__version__}
    assert citation["license"] == PROJECT["license"]


def test_every_direct_requirement_is_pinned_at_a_version_that_it_allows() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pins = {canonicalize_name(name): version for name, version in pinned.items()}
    extras = [word for words in PROJECT["optional-dependencies"].values() for word in words]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != "samestep":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_config_reference_is_made_from_the_schema_as_it_is() -> None:
    assert make_config.TARGET.read_text() == make_config.text(), "stale: python docs/make_config.py"


def test_no_meaning_is_left_of_a_key_that_is_gone() -> None:
    assert set(MEANINGS) <= {key.name for key in keys()}


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_every_key_has_a_line_that_says_what_it_means(key: Key) -> None:
    assert key.meaning.endswith(".")
    assert key.values
    assert "|" not in key.meaning + key.values + key.default
