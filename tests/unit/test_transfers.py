"""How a transfer is shown: not at all while it is short, by lines, by a bar."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import StringIO

import pytest

from deploy_runner.report.transfers import Transfer

MIB = 1 << 20


class Terminal(StringIO):
    """A terminal as far as `isatty` says so."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test turns."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def shown(*steps: tuple[float, int], quiet: bool = False, total: int = 100 * MIB) -> list[str]:
    """Return the lines of a transfer that gets `count` bytes `at` seconds after its begin."""
    clock, stream = Clock(), StringIO()
    with Transfer("downloading x", total, stream=stream, clock_s=clock, quiet=quiet) as report:
        for at_s, count in steps:
            clock.now_s = 100 + at_s
            report(count)
    return stream.getvalue().splitlines()


def test_what_takes_less_than_a_second_is_not_shown() -> None:
    assert shown((0.1, MIB), (0.99, 99 * MIB)) == []


def test_a_line_is_printed_every_five_seconds_at_most_and_one_at_the_end() -> None:
    steps = [
        (0.5, MIB),
        (1.0, MIB),
        (2, MIB),
        (5.9, MIB),
        (6.1, MIB),
        (11.0, MIB),
        (11.2, MIB),
        (12, 93 * MIB),
    ]
    assert shown(*steps) == [
        "downloading x: 2.0 MiB of 100.0 MiB",
        "downloading x: 5.0 MiB of 100.0 MiB",
        "downloading x: 7.0 MiB of 100.0 MiB",
        "downloading x: 100.0 MiB in 12.0 s",
    ]


def test_quiet_shows_nothing() -> None:
    assert shown((1, MIB), (20, MIB), quiet=True) == []


def test_a_failed_transfer_is_not_said_to_have_arrived() -> None:
    clock, stream = Clock(), StringIO()
    transfer = Transfer("downloading x", MIB, stream=stream, clock_s=clock)
    with suppress(ValueError), transfer as report:
        clock.now_s += 2
        report(10)
        raise ValueError
    assert stream.getvalue() == "downloading x: 10 B of 1.0 MiB\n"


def test_other_things_than_bytes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Transfer("reading records", 40, shown=str, clock_s=clock) as report:
        clock.now_s += 1
        report(3)
    assert capsys.readouterr().err == "reading records: 3 of 40\nreading records: 3 in 1.0 s\n"


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    with Transfer("downloading [x]", 4 * MIB, stream=stream, clock_s=clock) as report:
        clock.now_s += 1.5
        report(MIB)
        report(MIB)
    text = stream.getvalue()
    assert "downloading [x]" in text
    assert "2.0 MiB of 4.0 MiB" in text
    assert "in 1.5 s" not in text


def test_a_dumb_terminal_shows_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock, stream = Clock(), Terminal()
    with Transfer("x", MIB, stream=stream, clock_s=clock) as report:
        clock.now_s += 1.5
        report(1)
    assert stream.getvalue() == "x: 1 B of 1.0 MiB\nx: 1 B in 1.5 s\n"


def test_threads_that_report_after_the_end_are_ended() -> None:
    with ThreadPoolExecutor(1) as pool:
        with Transfer("x", 1) as report:
            report(1)
        late = pool.submit(report, 1)
    assert type(late.exception()).__name__ == "_Ended"
