"""Labelled raw data: a folder of files by class, a CSV, or lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest, first_line

if TYPE_CHECKING:
    from ...server.raw.rawio import RawIo

__all__ = ["LABEL", "Sample", "known", "samples"]

LABEL = "label"
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_NAME = "file_name"
"""What Hugging Face's imagefolder calls the column of the files:
https://huggingface.co/docs/datasets/image_dataset"""
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample, where it is from, and its label; None where there is none. `read` gives its fields."""

    place: str
    read: Callable[[], Mapping[str, Any]]
    label: Any

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return what a request would hold: of a file, read now."""
        return self.read()


def samples(data: Path, io: RawIo, label: str) -> Iterator[Sample]:
    """Yield what a folder or file has, one at a time. Raises StageError for what isn't a sample.

    A folder's files have their class's folder as the label, or what its metadata.csv or metadata.jsonl
    says by `file_name`. A CSV names its columns in the first line; what is neither `label` nor the model's
    is left out. A line of JSON is an object with a sample's fields and `label`.
    """
    if data.is_dir():
        yield from _of_folder(data, io, label)
    elif data.suffix in (".csv", ".tsv"):
        for place, row in _rows(data):
            yield Sample(place, partial(dict, _of_row(row, io, label, place)), row.get(label))
    elif data.suffix in (".jsonl", ".ndjson"):
        for place, line in _lines(data):
            rest = {key: value for key, value in line.items() if key != label}
            yield Sample(place, partial(dict, _of_json(rest, io, place)), line.get(label))
    else:
        raise StageError(f"{data.name} is no data for the io", fix="use a folder, .csv, .tsv or .jsonl")


def known(label: Any, io: RawIo, place: str) -> Any:
    """Return a label as the model answers it: by its name, or by its place where data has numbers.

    Raises StageError for one that the model can't answer.
    """
    names = io.spec["answer"].get("labels")
    if isinstance(label, list):
        return [known(one, io, place) for one in label]
    if names is None:
        return int(label) if str(label).isdecimal() else label
    found = next((name for name in names if str(name) == str(label)), None)
    if found is None and str(label).isdecimal() and int(label) < len(names):
        found = names[int(label)]
    if found is None:
        listed = ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
        raise StageError(f"{place}: the label {str(label)!r} is none of the model's: {listed}",
                         fix=closest(str(label), map(str, names)))  # fmt: skip
    return found


def _of_folder(folder: Path, io: RawIo, label: str) -> Iterator[Sample]:
    from ..model.golden import sample_of

    table = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if table is not None:
        for place, row in _rows(table) if table.suffix == ".csv" else _lines(table):
            file = folder / str(row.get(_FILE_NAME))
            if not file.is_file():
                raise StageError(f"{place}: {_FILE_NAME} {str(row.get(_FILE_NAME))!r} does not exist")
            yield Sample(str(row[_FILE_NAME]), partial(sample_of, file, io), row.get(label))
        return
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    for file in files:
        inside = file.relative_to(folder)
        of_class = inside.parts[0] if len(inside.parts) > 1 else None
        yield Sample(str(inside), partial(sample_of, file, io), of_class)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                place = f"{file.name}:{reader.line_num}"
                if None in row or None in row.values():
                    raise StageError(f"{place}: the line has more or fewer values than the header")
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise StageError(f"{file.name}:{reader.line_num + 1}: {first_line(error)}") from None


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            place = f"{file.name}:{number}"
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                raise StageError(f"{place} is not JSON: {first_line(error)}") from None
            if not isinstance(line, dict):
                raise StageError(f"{place} is no object of a sample's fields and its label")
            yield place, line


def _of_row(row: Mapping[str, Any], io: RawIo, label: str, place: str) -> dict[str, Any]:
    rest = {key: value for key, value in row.items() if key != label}
    if "row" in io.kinds.fields:
        return {"row": {key: value for key, value in rest.items() if key in io.kinds.columns}}
    if "text" in io.kinds.fields:
        text = rest.get("text", next(iter(rest.values())) if len(rest) == 1 else None)
        if text is None:
            raise StageError(f"{place}: the CSV has no column 'text', only {', '.join(row)}")
        return {"text": [text, rest["text_pair"]] if "text_pair" in rest else text}
    if "data" in io.kinds.fields:
        return {"data": rest}
    raise StageError(f"a CSV can't hold {', '.join(io.kinds.fields)}", fix="use a folder of files")


def _of_json(value: dict[str, Any], io: RawIo, place: str) -> dict[str, Any]:
    from ...server.raw.problems import BadInput
    from ...server.raw.requests import of_json

    if "row" in io.kinds.fields and "row" not in value:
        value = {key: given for key, given in value.items() if key in io.kinds.columns}
    elif "data" not in io.kinds.fields:
        value = {key: given for key, given in value.items() if key in (*io.kinds.fields, "text_pair")}
    try:
        given = of_json(value, io.kinds)
    except BadInput as error:
        raise StageError(f"{place}: {error}") from None
    if given is None or not given.alone:
        raise StageError(f"{place} is no sample of {', '.join(io.kinds.fields)}")
    return dict(given.samples[0])
