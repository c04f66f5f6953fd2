"""The YAML that pipelines are written in."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from deploy_runner.errors import SpecError, UsageError
from deploy_runner.pipeline.loader import load_yaml, plain, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", {"a": "no"}),
        ("a: on", {"a": "on"}),
        ("a: true", {"a": True}),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: 0o17", {"a": 15}),
        ("a: 0x1F", {"a": 31}),
        ("a: -12", {"a": -12}),
        ("a: 1.5e3", {"a": 1500.0}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 2026-11-24", {"a": "2026-11-24"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: '010'", {"a": "010"}),
        ("a: !!str 12", {"a": "12"}),
        ("on: 1", {"on": 1}),
        ("a: [1, two, {b: c}]", {"a": [1, "two", {"b": "c"}]}),
        ("x: &x {a: 1}\ny: *x", {"x": {"a": 1}, "y": {"a": 1}}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_the_core_schema_is_read(text: str, value: object) -> None:
    assert plain(load_yaml(text.lstrip("\ufeff"), "p.yaml")) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "p.yaml:2:1: the key 'a' is already defined at line 1, column 1"),
        ("a: 010", "p.yaml:1:4: 010 could be octal or decimal (write 10, or 0o10 for octal, or quote it)"),
        ("a: .nan", "p.yaml:1:4: .nan is not a finite number (quote it)"),
        ("a: 1e999", "p.yaml:1:4: 1e999 is a number that is too large (quote it)"),
        ("1.5: a", "p.yaml:1:1: a key must be a string, not 1.5 (put it in quotes)"),
        ("[a]: b", "p.yaml:1:3: a key must be a string, not a collection (put it in quotes)"),
        ("a: *b", "p.yaml:1:4: there is no anchor &b before this alias"),
        ("a: &a [*a]", "p.yaml:1:8: the alias *a contains itself"),
        ("a: !!python/name:os.system x", "p.yaml:1:4: the tag tag:yaml.org,2002:python/name:os.system is"),
        ("a: 1\n---\nb: 2", "p.yaml:2:1: a second document starts here (keep one)"),
        ("", "p.yaml:1:1: the file is empty"),
        ("# nothing", "p.yaml:1:1: the file is empty"),
        ("a: [1", "p.yaml:2:1: not valid YAML: while parsing a flow sequence"),
        (
            "a:\n    b: 1\n   c: 2",
            "p.yaml:3:4: not valid YAML: while parsing a block mapping did not find expected key "
            "(indent the line exactly like the others of its block)",
        ),
        (
            "a:\n  - 1\n b: 2",
            "p.yaml:3:2: not valid YAML: while parsing a block mapping did not find expected key "
            "(indent the line exactly like the others of its block)",
        ),
        (
            "a:\n\tb: 1",
            "p.yaml:2:1: not valid YAML: while scanning for the next token found character that cannot start "
            "any token (indent with spaces: YAML allows no tabs there)",
        ),
        (
            "a: b: c",
            "p.yaml:1:5: not valid YAML: mapping values are not allowed in this context (indent the line exactly "
            "like the others of its block, or quote a value that contains `: `)",
        ),
        ("a: \x07", "p.yaml:1:4: the character U+0007 is not allowed"),
        ("a: {<<: 3}", "p.yaml:1:9: '<<' merges a mapping, or a list of mappings"),
    ],
)
def test_what_it_refuses_has_a_place_and_a_reason(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=rf"\A{re.escape(said)}"):
        load_yaml(text, "p.yaml")


def test_bombs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    merges = ["m0: &m0 {a: 1}"] + [
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12)
    ]
    nested = "a: " + "[" * 20_000
    started = time.process_time()
    bombs = [
        ("\n".join(lines), "the aliases expand to more than 100000 values"),
        ("\n".join(merges), "the aliases expand to more than 100000 values"),
        (nested, "nested deeper than 64 levels"),
        ("[" * (16 << 20), "nested deeper than 64 levels"),
        ("k" * ((16 << 20) - 3) + ": 1", "not valid YAML: mapping values are not allowed in this context"),
        ("a: [" + "x," * (8 << 20), "the file contains more than 500000 keys and values .*`matrix:`"),
    ]
    for text, said in bombs:
        with pytest.raises(SpecError, match=said):
            load_yaml(text, "p.yaml")
    # CPU time, not a clock: a bomb that is expanded takes minutes.
    assert time.process_time() - started < 20


def test_bytes_that_are_not_utf8_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(SpecError, match=r"\Ap\.yaml:2:4: byte 0xff is not UTF-8\Z"):
        read_text(path, "p.yaml")


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nope.yaml does not exist"):
        read_text(tmp_path / "nope.yaml", "nope.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        read_text(tmp_path, "here")


def test_a_missing_file_is_answered_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/pröduction.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    for name in ("configs/prodution.yaml", "config/pröduction.yaml", "./configs/pröduction.yml"):
        with pytest.raises(UsageError, match=r"did you mean '(\./)?configs/pröduction\.yaml'\?"):
            read_text(Path(name), name)
    for name in ("nothing/x.yaml", "configs/pröduction.yaml/x", "", "/nowhere/p.yaml", "x.yaml"):
        with pytest.raises(UsageError, match=r"\A[^(]*\(do this\)\Z|is a folder|can't be read"):
            read_text(Path(name), name, missing="do this")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"#" * ((16 << 20) - 5) + b"\na: 1")
    assert load_yaml(read_text(path, "p.yaml"), "p.yaml").value["a"].value == 1
    path.write_bytes(b"#" * (16 << 20) + b"\na: 1")
    with pytest.raises(SpecError, match=r"larger than 16 MiB \(write stages .* with a `matrix:`\)"):
        read_text(path, "p.yaml")
