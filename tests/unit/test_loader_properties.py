"""Whatever is done to a pipeline file, it is accepted or refused with a place: never a traceback."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from deploy_runner.errors import SpecError, UsageError
from deploy_runner.pipeline.build import build
from deploy_runner.pipeline.overlay import load_document
from deploy_runner.registry import Registry
from tests.conftest import ROOT

_TOKENS = ["{", "}", "[", "]", ":", ",", "- ", "&a ", "*a", "!!int ", "|", ">", "'", '"', "${{ ", " }}", "#",
           "null", "010", "true", "1e999", "\t", "\x00", "é", "<<: ", "---\n", "...", "\n", "  ", "stages", "?"]  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    """Return the text with one to four small damages."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        position, line = rng.randrange(len(text) + 1), rng.randrange(len(lines))
        way = rng.randrange(8)
        if way == 0:
            text = text[:position] + rng.choice(_TOKENS) + text[position:]
        elif way == 1:
            text = text[:position] + text[position + rng.randint(1, 6) :]
        elif way == 2:
            lines.insert(line, lines[rng.randrange(len(lines))])
        elif way == 3:
            del lines[line]
        elif way == 4:
            lines[line] = " " * rng.randint(0, 6) + lines[line].lstrip()
        elif way == 5:
            words = text.split(" ")
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
        elif way == 6:
            text = text[:position] + chr(rng.randint(0, 0x2FF)) + text[position + 1 :]
        else:
            text = text[:position]
        if way in (2, 3, 4):
            text = "\n".join(lines)
        if not text:
            return text
    return text


def check(count: int, folder: Path, seed: int) -> tuple[int, int]:
    """Compile `count` mutated pipelines; return how many were refused, and with a place."""
    original = (ROOT / "pipeline.yaml").read_text()
    (folder / "examples").mkdir()
    shutil.copytree(ROOT / "examples/digits", folder / "examples/digits")
    path, registry, rng = folder / "pipeline.yaml", Registry(folder), random.Random(seed)
    refused = placed = 0
    for _ in range(count):
        path.write_text(mutate(original, rng), errors="surrogatepass")
        try:
            build(load_document(path, [], []), path, {}, registry)
        except UsageError:
            refused += 1
        except SpecError as error:
            refused += 1
            placed += all(p.line > 0 and p.column > 0 for p in error.problems)
    return refused, placed


def test_mutated_pipelines_are_refused_with_line_and_column(tmp_path: Path) -> None:
    refused, placed = check(300, tmp_path, seed=1)
    assert refused > 150
    assert placed / refused >= 0.99


@pytest.mark.slow
def test_ten_thousand_mutated_pipelines_give_no_traceback(tmp_path: Path) -> None:
    refused, placed = check(10_000, tmp_path, seed=2)
    assert placed / refused >= 0.99
