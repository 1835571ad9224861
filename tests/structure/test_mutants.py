"""The mutants in tests/promise apply to the code as it stands, and each names tests that exist."""

from __future__ import annotations

import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests/promise"))
from mutants import broken
from mutants_list import MUTANTS, Mutant


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_and_is_looked_for(mutant: Mutant) -> None:
    assert broken(mutant)
    for path, _, name in (word.partition("::") for word in mutant.tests if word.startswith("tests/")):
        assert f"def {name}(" in (ROOT / path).read_text()


def test_a_patch_whose_text_is_gone_is_an_error() -> None:
    for find in ("never written", "import"):
        with pytest.raises(ValueError, match="write one that stands there once"):
            broken(MUTANTS[0]._replace(find=find))
