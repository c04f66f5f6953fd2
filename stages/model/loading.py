"""Load weights into a module as load_state_dict would, without copying them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, first_line

from . import ties
from .state_dicts import StateDict, refitted
from .wording import user_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    Tensors = Mapping[str, torch.Tensor]

_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape (?:torch\.Size\()?[\[(]([^\])]*)[\])].*"
    r"model is (?:torch\.Size\()?[\[(]([^\])]*)[\])]"
)
_MOST_PATTERNS = 6


@dataclass
class Loaded:
    """What load_state_dict did beside filling every name of the module with one of the file."""

    initial: list[str] = field(default_factory=list)
    """Missing in the file, and allowed to be: as the factory made them."""
    dropped: list[str] = field(default_factory=list)
    """In the file, not in the module, and allowed to be."""
    narrowed: list[str] = field(default_factory=list)
    """Rounded to a narrower float: the module's type is the one that counts."""
    refit: str = ""
    """What was put before (`+`) or taken off (`-`) the file's names, so that they fit."""


def load(
    module: nn.Module,
    weights: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    copy: bool = False,
) -> Loaded:
    """Make weights the module's own; names of one tensor are one again.

    load_state_dict itself decides what fits, so that its hooks, renamings, versions, lazy layers and
    extra states count. The module keeps its Parameter objects, whoever else refers to them, and its
    dtypes. Memory is shared with `weights`, but where something else still looks at the module's
    old memory (a view kept as an attribute), or with `copy` (for training on views): there the
    values are copied into it.

    The patterns are of fnmatch. Raises StageError that lists missing and unexpected keys, every
    difference of shape, pairs of names that are one in the model and two in the file, numbers that
    the module's type can't hold, and what stays without values on the meta device.
    """
    before = _named(module)
    before = _named(module)
    given = refitted(weights, before)
    memory = _Memory(before, copy=copy)
    fitted = StateDict({n: _cast(n, t, before.get(n)) for n, t in given.items()}, versions=given.versions)
    missing, unexpected = _call(module, fitted)
    after = _named(module)
    sources: dict[str, str] = {}
    for names in ties.groups(before):
        present = [name for name in names if name not in missing]
        _refuse_conflict(present, after, fitted)
        if present:
            sources |= dict.fromkeys(names, present[0])
    missing = [name for name in missing if name not in sources]
    _refuse_misfit(missing, unexpected, [], allow_missing, allow_unexpected, given.refit)
    narrowed = _put_back(module, before, after, sources)
    memory.fill(_named(module))
    _refuse_meta(module)
    narrowed |= {n: before[n] for n, t in given.items() if n in before and _narrows(t, before[n])}
    return Loaded(missing, unexpected, sorted(narrowed), given.refit)


def is_lazy(module: nn.Module) -> bool:
    """Say whether layers of a module wait for its first input, though they have their weights."""
    from torch.nn.modules.lazy import LazyModuleMixin

    return any(isinstance(part, LazyModuleMixin) for part in module.modules())


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a state_dict holds, by each of its names, before any hook renames it."""
    return {
        f"{path}.{name}".lstrip("."): tensor
        for path, part in module.named_modules(remove_duplicate=False)
        for name, tensor in {**part._parameters, **part._buffers}.items()
        if tensor is not None and name not in part._non_persistent_buffers_set
    }


def _call(module: nn.Module, weights: StateDict) -> tuple[list[str], list[str]]:
    """Let the module load; return its missing and unexpected keys."""
    try:
        result = module.load_state_dict(weights, strict=False, assign=True)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shapes = [found for line in lines if (found := _SHAPE.match(line))]
        if not isinstance(error, RuntimeError) or not lines or len(shapes) < len(lines):
            said = next((line for line in lines if not _SHAPE.match(line)), first_line(error))
            where = user_line(error)
            raise StageError(f"the model can't load the checkpoint: {type(error).__name__}: {said}{where}",
                             fix="check that its load_state_dict accepts this file") from error  # fmt: skip
        _refuse_shapes(module, weights, shapes)
        raise
    return list(result.missing_keys), list(result.unexpected_keys)


def _refuse_shapes(module: nn.Module, weights: StateDict, found: Sequence[re.Match[str]]) -> None:
    """Name every difference of shape, and with them the missing and unexpected keys."""
    names = {match[1] for match in found}
    rest = StateDict({n: t for n, t in weights.items() if n not in names}, versions=weights.versions)
    missing, unexpected = _call(module, rest) if len(rest) < len(weights) else ([], [])
    shapes = [f"{m[1]} is {_tuple(m[2])}, the model requires {_tuple(m[3])}" for m in found]
    _refuse_misfit([n for n in missing if n not in names], unexpected, shapes, (), ())


def _tuple(text: str) -> str:
    sizes = [part.strip() for part in text.split(",") if part.strip()]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def _refuse_misfit(
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[str],
    allow_missing: Sequence[str],
    allow_unexpected: Sequence[str],
    refit: str = "",
) -> None:
    lost = [n for n in missing if not _matches(n, allow_missing)]
    extra = [n for n in unexpected if not _matches(n, allow_unexpected)]
    titled = (("missing", lost), ("unexpected", extra), ("shapes differ:", shapes))
    problems = [f"{title} {_some(names)}" for title, names in titled if names]
    if not problems:
        return
    fix = "change the factory, its kwargs, or the checkpoint's key"
    if refit.startswith("-") and "*" not in refit:
        fix = f"to keep only the model's, set `strip_prefix: {refit[1:]}` on checkpoint.state_dict"
    parts = (("allow_missing", allow_missing, lost), ("allow_unexpected", allow_unexpected, extra))
    options = [f"{option}: {[*given, *_patterns(names)]!r}" for option, given, names in parts if names]
    if options and not shapes:
        fix += f"; or, if that is intended, set {' and '.join(options)}"
    raise StageError(f"the checkpoint doesn't match the model: {'; '.join(problems)}", fix=fix)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(names: Sequence[str]) -> list[str]:
    """Return the names, or where they are many one pattern for each of their first parts."""
    if len(names) <= _MOST_PATTERNS:
        return list(names)
    tops = {name.partition(".")[0] for name in names}
    return sorted(f"{top}.*" if any(n.startswith(f"{top}.") for n in names) else top for top in tops)


def _some(items: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def _cast(name: str, value: Any, wanted: torch.Tensor | None) -> Any:
    """Return a tensor in the module's type. Raises StageError if that can't represent its values."""
    import torch

    if not isinstance(value, torch.Tensor) or wanted is None or value.dtype == wanted.dtype:
        return value
    cast = value.to(wanted.dtype)
    floats = value.is_floating_point() and wanted.is_floating_point()
    if floats or (value.is_complex() and wanted.is_complex()):
        return cast
    if torch.equal(cast.to(value.dtype), value):
        return cast
    kinds = [str(t.dtype).removeprefix("torch.") for t in (value, wanted)]
    said = f"{name} is {kinds[0]} in the checkpoint and {kinds[1]} in the model, which can't represent it"
    raise StageError(said, fix="use the type that the tensor was trained with")


def _narrows(given: Any, kept: torch.Tensor) -> bool:
    import torch

    if not isinstance(given, torch.Tensor) or not given.is_floating_point() or not kept.is_floating_point():
        return False
    return torch.finfo(given.dtype).bits > torch.finfo(kept.dtype).bits


def _refuse_conflict(present: Sequence[str], after: Tensors, given: Mapping[str, Any]) -> None:
    """Refuse names of one tensor for which the file has different values."""
    for name in present[1:]:
        pair = [after[present[0]], after[name]]
        if pair[0] is pair[1]:  # A module with two names: the second has overwritten the first.
            pair = [given.get(present[0], pair[0]), given.get(name, pair[1])]
        if ties.place(pair[0]) is not None and ties.place(pair[0]) == ties.place(pair[1]):
            continue
        if not _equal(*pair):
            raise StageError(
                f"{present[0]} and {name} are tied in the model, but differ in the checkpoint",
                fix="if it was trained without the tie, have the factory build that model",
            )


def _put_back(
    module: nn.Module, before: Tensors, after: Tensors, sources: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Give the module its own Parameter objects again, with the values that were assigned to it.

    Lists, RNNs' flat weights and other modules may refer to them. Return the tensors that lost precision.
    """
    import torch

    values: dict[str, torch.Tensor] = {}
    narrowed = {}
    for name, old in before.items():
        source = sources.get(name, name)
        new = after.get(source)
        if new is None or torch.nn.parameter.is_lazy(old):
            continue
        if new is not old and "meta" not in (old.device.type, new.device.type):
            if _narrows(new, old):
                narrowed[name] = old
            if source not in values:
                values[source] = _cast(name, new.detach(), old)
            old.data = values[source]
            new = old
        _assign(module, name, new)
    return narrowed


class _Memory:
    """The memory of a module's tensors, to fill it where something still looks at it."""

    def __init__(self, tensors: Tensors, *, copy: bool) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        self._layouts = {
            name: (t.storage_offset(), t.shape, t.stride(), t.dtype)
            for name, t in tensors.items()
            if ties.place(t) is not None
        }
        storages = {name: tensors[name].untyped_storage() for name in self._layouts}
        self._kept = storages if copy else {}
        self._weak = {name: StorageWeakRef(storage) for name, storage in storages.items()}

    def fill(self, tensors: Tensors) -> None:
        """Move tensors to where they were, if that is still looked at; else it is free already."""
        moved = {}
        for name, (offset, shape, stride, dtype) in self._layouts.items():
            storage = self._storage(name)
            tensor = tensors.get(name)
            if storage is None or tensor is None or (tensor.shape, tensor.dtype) != (shape, dtype):
                continue
            view = tensor.detach().new_empty(0).set_(storage, offset, shape, stride)
            if ties.place(view) != ties.place(tensor):
                view.copy_(tensor.detach())
                moved[name] = (tensor, view)
        _refuse_overlap(moved)
        for tensor, view in moved.values():
            tensor.data = view

    def _storage(self, name: str) -> Any:
        import torch

        weak = self._weak[name]
        return torch.UntypedStorage._new_with_weak_ptr(weak.cdata)


def _refuse_overlap(moved: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    changed = [name for name, pair in moved.items() if not _equal(*pair)]
    if changed:
        raise StageError(
            f"{_some(changed)} overlap other tensors in the model's memory, but differ in the checkpoint",
            fix="allocate each tensor separately in the factory",
        )


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    import torch

    return torch.equal(first.detach().nan_to_num(), second.detach().nan_to_num())


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    part = module.get_submodule(owner)
    if getattr(part, attribute, None) is not tensor:
        setattr(part, attribute, tensor)


def _refuse_meta(module: nn.Module) -> None:
    import torch

    held = {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in {**vars(part), **part._parameters, **part._buffers}.items()
        if isinstance(value, torch.Tensor)
    }
    empty = sorted(name for name, tensor in held.items() if tensor.device.type == "meta")
    if empty:
        raise StageError(
            f"{_some(empty)} stay on the meta device, without values: the checkpoint doesn't contain them",
            fix="create them on the CPU in the factory (`with torch.device('cpu'): …`), or save them",
        )
