"""The layout of the report's graph."""

from __future__ import annotations

import itertools
import sys

from deploy_runner.report.layout import place


def test_a_thousand_stages_in_a_row_are_drawn_below_each_other() -> None:
    limit = sys.getrecursionlimit()
    names = [str(n) for n in range(1000)]
    drawn = place(names, itertools.pairwise(names), 100, 30)
    heights = [drawn.places[name].y for name in names]
    assert heights == sorted(set(heights))
    assert sys.getrecursionlimit() == limit
