"""An io artifact: how raw input becomes tensors, and tensors an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answering import Answers
from .problems import BadInput
from .python import function
from .requests import Kinds
from .spec import read

if TYPE_CHECKING:
    from . import picture, row, sound, text  # noqa: F401 - so that the keys of stages hold their source

__all__ = ["READERS", "RawIo"]

READERS = {"picture": "Picture", "text": "Text", "sound": "Sound", "row": "Row", "python": "Python"}
"""What io.json may declare → the class in the module of that name."""


class RawIo:
    """What an io.json declares. Thread safe."""

    def __init__(self, folder: Path, spec: Mapping[str, Any] | None = None) -> None:
        self.spec: Mapping[str, Any] = spec or read(folder)
        self._folder = folder
        self._readers: dict[str, Any] = {}
        answer = self.spec["answer"]
        boxes = {"geometry": True} if answer.get("kind") == "boxes" else {}
        for kind, name in READERS.items():
            if kind in self.spec:
                reader = getattr(import_module(f".{kind}", __package__), name)
                self._readers[reader.field] = reader({**self.spec[kind], **boxes}, folder)
        self._answers = None if "postprocess" in answer else Answers(answer)
        self._postprocess = function(answer["postprocess"], folder) if self._answers is None else None
        self.kinds = self._kinds()

    def _kinds(self) -> Kinds:
        if "row" not in self.spec:
            return Kinds(tuple(self._readers))
        from .row import rows

        columns = [column["name"] for column in self.spec["row"]["columns"]]
        return Kinds(tuple(self._readers), columns, partial(rows, spec=self.spec["row"]))

    def with_changed(self, kind: str, spec: Mapping[str, Any]) -> RawIo:
        """Return the same with another specification of a kind."""
        return RawIo(self._folder, {**self.spec, kind: spec})

    def arrays(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the model's inputs for samples by field, along axis 0 of each. Raises BadInput."""
        for sample in samples:
            missing = [field for field in self._readers if field not in sample]
            if missing:
                raise BadInput(f"the sample has no {missing[0]!r}")
        found: dict[str, Any] = {}
        for field, reader in self._readers.items():
            found |= reader.arrays([sample[field] for sample in samples])
        return found

    def answers(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        """Return each sample's answer, of outputs and inputs with the samples along axis 0."""
        if self._answers is not None:
            return self._answers(outputs, inputs)
        assert self._postprocess is not None
        count = len(next(iter(outputs.values())))
        return [self._postprocess({name: array[i] for name, array in outputs.items()}) for i in range(count)]
