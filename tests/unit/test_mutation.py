"""What a module's own tests notice of what is broken in it. `make mutation` tries every mutant."""

from __future__ import annotations

import pytest

from tests.mutation import LEAST, MODULES, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_own_tests_notice_what_is_broken_in_it(module: str) -> None:
    score = measure(module, sample=60)
    assert score.killed >= LEAST, "\n".join(score.survivors)


def test_a_module_that_its_tests_do_not_reach_has_no_score() -> None:
    with pytest.raises(RuntimeError, match="could not find any test case for any mutant"):
        measure("graph", tests=["tests/unit/test_spellings.py"])
