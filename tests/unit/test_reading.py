"""A command line that is spelled out means the same to us as to argparse, which reads every other."""

from __future__ import annotations

import argparse
from typing import cast

import pytest

from deploy_runner import cli
from deploy_runner.commands.convert import Convert
from deploy_runner.commands.options import Verb, fill, given
from deploy_runner.commands.planning import Graph, Plan
from deploy_runner.commands.reading import Declared
from deploy_runner.commands.results import Diff, Get, Show
from deploy_runner.commands.running import Run

RUN = "p.yaml a b --config x.yaml -q --set a=1 --cpu 3 c --memory 2GiB --set b=2 --executor ray --json"


def by_argparse(verb: type[Verb], words: list[str]) -> Verb:
    parser = argparse.ArgumentParser(exit_on_error=False)
    fill(parser, verb)
    return given(verb, vars(parser.parse_intermixed_args(words)))


def declared(verb: type[Verb]) -> Declared:
    found = Declared()
    fill(cast("argparse.ArgumentParser", found), verb)
    return found


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        (Run, ""),
        (Run, RUN),
        (Run, "--quiet a"),
        (Plan, "p.yaml --json"),
        (Graph, "--format dot"),
        (Get, "p.yaml a.o out"),
        (Get, "--list"),
        (Show, "--run 3 p.yaml a"),
        (Diff, "1 2"),
        (Diff, "1 2 p.yaml"),
        (Convert, "m.onnx"),
        (Convert, "m.onnx --to onnx --to mobile --opset 18"),
    ],
)
def test_what_is_spelled_out_is_read_as_argparse_reads_it(verb: type[Verb], line: str) -> None:
    try:
        expected = by_argparse(verb, line.split())
    except (argparse.ArgumentError, SystemExit):
        assert declared(verb).read(line.split()) is None
        return
    values = declared(verb).read(line.split())
    assert values is not None
    assert given(verb, values) == expected


@pytest.mark.parametrize(
    "line",
    ["-h", "--he", "--conf x.yaml", "--cpu=3", "--cpu x", "--cpu", "--cpu -1", "--executor moon", "-qq", "-- a",
     "--unknown", "--set --json", "--set", "- --q"],
)  # fmt: skip
def test_what_is_abbreviated_joined_or_wrong_is_left_to_argparse(line: str) -> None:
    assert declared(Run).read(line.split()) is None


@pytest.mark.parametrize("name", cli._MODULES)
def test_every_verb_is_declared_to_both(name: str) -> None:
    assert declared(cli._class(name)).read(["--unknown"]) is None
