"""Rows of named columns to tensors."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .problems import BadInput, Malformed

__all__ = ["Row", "rows", "variants"]

_MOST_ROWS = 100_000
_EXACT = 1 << 53
"""The largest number up to which float64 holds every whole one."""
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Row:
    """Rows as tensors.

    The specification has `columns`, each with `name`, `kind` (number, category, flag), `vocabulary` of
    categories, whose places are their numbers, `unknown`, the number of any other (None: refused),
    `missing`, the value of what is missing or null (None: refused), `mean` and `std` of numbers; and
    `tensors`: input → `dtype`, `columns` in order, `shape`, columns [N, columns] or each [N].
    """

    field = "row"

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self._columns: Mapping[str, Mapping[str, Any]] = {
            column["name"]: column for column in spec["columns"]
        }
        self._tensors = spec["tensors"]
        self._places = {
            name: {value: place for place, value in enumerate(column["vocabulary"] or ())}
            for name, column in self._columns.items()
        }

    def arrays(self, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the inputs, rows along axis 0. Raises BadInput."""
        table = [self._values(row) for row in given]
        found = {}
        for tensor, said in self._tensors.items():
            array = np.array([[row[name] for name in said["columns"]] for row in table], np.float64)
            array = _typed(array, np.dtype(said["dtype"]), said["columns"])
            found[tensor] = array[:, 0].copy() if said["shape"] == "each" else array
        return found

    def _values(self, row: Any) -> dict[str, float]:
        if not isinstance(row, Mapping):
            raise BadInput("a row is an object of columns by name")
        problems = [f"unknown column {name!r}" for name in row if name not in self._columns]
        values = {}
        for name, column in self._columns.items():
            try:
                values[name] = self._value(column, row.get(name))
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise BadInput("; ".join(problems[:20]))
        return values

    def _value(self, column: Mapping[str, Any], given: Any) -> float:
        if given is None or given == "" or (isinstance(given, float) and math.isnan(given)):
            given = column["missing"]
            if given is None:
                raise ValueError("it is missing")
        if column["kind"] == "category":
            return self._category(column, given)
        if column["kind"] == "flag":
            return float(_flag(given))
        number = _number(given)
        if column["mean"] is not None:
            number -= column["mean"]
        return number / column["std"] if column["std"] is not None else number

    def _category(self, column: Mapping[str, Any], given: Any) -> float:
        places = self._places[column["name"]]
        place = None if isinstance(given, list | dict) else places.get(given)
        if place is None and isinstance(given, str):  # A CSV has no types.
            place = next((p for value, p in places.items() if str(value) == given), None)
        if place is not None:
            return place
        if column["unknown"] is None:
            known = ", ".join(map(repr, list(places)[:8])) + (", …" if len(places) > 8 else "")
            raise ValueError(f"{str(given)[:40]!r} is none of its categories {known}")
        return float(column["unknown"])


def _typed(array: Any, dtype: Any, columns: Sequence[str]) -> Any:
    """Return numbers as a type. Raises BadInput for those that it can't hold."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        least, most = max(info.min, -_EXACT), min(info.max, _EXACT)
        if not ((array == np.rint(array)) & (array >= least) & (array <= most)).all():
            raise BadInput(f"{', '.join(columns)}: whole numbers from {least} to {most} are taken")
    with np.errstate(over="ignore"):
        typed = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(typed).all():
        raise BadInput(f"{', '.join(columns)}: a number is too large for {dtype}")
    return typed


def _number(given: Any) -> float:
    try:
        taken = isinstance(given, int | float | str) and not isinstance(given, bool)
        number = float(given) if taken else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{str(given)[:40]!r} is not a finite number")
    return number


def _flag(given: Any) -> bool:
    found = given if isinstance(given, bool) else _FLAGS.get(str(given).strip().lower())
    if found is None:
        raise ValueError(f"{str(given)[:40]!r} is neither true nor false")
    return found


def rows(text: str, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a CSV whose first line names its columns. Raises BadInput."""
    known = [column["name"] for column in spec["columns"]]
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        header = [name.strip() for name in next(reader, [])]
        if not set(header) & set(known) or len(set(header)) < len(header):
            raise BadInput(f"the first line of the CSV names its columns: {', '.join(known)}")
        found: list[dict[str, Any]] = []
        for line in reader:
            if not line:
                continue
            if len(line) != len(header):
                raise BadInput(f"line {reader.line_num} has {len(line)} values, the header {len(header)}")
            if len(found) >= _MOST_ROWS:
                raise BadInput(f"the CSV has more than {_MOST_ROWS} rows", too_large=True)
            found.append(dict(zip(header, line, strict=True)))
    except csv.Error as error:
        raise Malformed(f"the body is not CSV: {error}") from None
    if not found:
        raise BadInput("the CSV has no rows")
    return found


def variants(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a step, what code does that takes it otherwise, and the specification of that."""
    columns = list(spec["columns"])
    for place, column in enumerate(columns):
        for key in ("mean", "std"):
            if column[key] is not None:
                other = [*columns[:place], {**column, key: None}, *columns[place + 1 :]]
                yield key, f"leaves out the {key} of {column['name']!r}", {**spec, "columns": other}
        if column["kind"] == "category":
            sorted_ = [*columns[:place], {**column, "vocabulary": sorted(column["vocabulary"], key=str)},
                       *columns[place + 1 :]]  # fmt: skip
            yield "vocabulary", f"sorts the categories of {column['name']!r}", {**spec, "columns": sorted_}
    plain = [{**column, "mean": None, "std": None} for column in columns]
    yield "mean", "neither subtracts means nor divides by deviations", {**spec, "columns": plain}
