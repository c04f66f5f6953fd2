"""Find the state_dict in a checkpoint, and the names that its tensors have in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deploy_runner.sdk import StageError, counted

from .extra_state import SUFFIX

_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the names, also of submodules."""
_WRAPPERS = ("module.", *_INSIDE)
_PART = ".module."
_AVERAGED = "n_averaged"
"""The counter of torch.optim.swa_utils.AveragedModel, which wraps the model as `module`."""

_RAW = ("model_state_dict", "state_dict", "model_state", "model", "module", "net", "network", "weights",
        "model_weights", "params", "generator", "netG", "net_g")  # fmt: skip
EMA = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "model_ema_state_dict",
       "ema_model_state_dict", "model_state_dict_ema", "params_ema", "g_ema", "generator_ema",
       "swa_state_dict", "swa_model")  # fmt: skip
"""The keys of averaged weights, after those of the weights as trained."""

_MOST_PARTS = 3
_MOST_DEEP = 3


class StateDict(dict[str, Any]):
    """Tensors and extra states by name, with what torch keeps beside them.

    `versions` is torch's `_metadata`: module → what load_state_dict migrates old layouts by.
    `stripped` are the wrappers that were taken off every name, outermost first; `refit` says what
    `refitted` did.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        versions: Mapping[str, Mapping[str, Any]] | None = None,
        stripped: Sequence[str] = (),
        refit: str = "",
    ) -> None:
        super().__init__(values)
        self.versions = {name: dict(given) for name, given in (versions or {}).items()}
        self.stripped, self.refit = list(stripped), refit

    @property
    def _metadata(self) -> dict[str, dict[str, Any]] | None:
        """Return what load_state_dict looks for under this name."""
        return {name: dict(given) for name, given in self.versions.items()} or None

    def renamed(self, names: Mapping[str, str], prefix: str = "", add: str = "") -> StateDict:
        """Return it under other names: of modules, `prefix` is taken off and `add` is put before."""
        versions = {}
        for module, given in self.versions.items():
            path = f"{module}."
            if path.startswith(prefix):
                versions[_unwrapped(add + path.removeprefix(prefix)).removesuffix(".")] = given
        values = {names.get(name, name): value for name, value in self.items()}
        return StateDict(values, versions=versions, stripped=self.stripped, refit=self.refit)


def find_state_dict(content: Any, key: str | None) -> tuple[StateDict, str]:
    """Return the state_dict inside a checkpoint, and the key it was under ("" if bare).

    Weights as trained go before averaged ones. Raises StageError that lists what is there instead.
    """
    import torch

    if isinstance(content, torch.nn.Module):
        return _taken(content), ""
    if not isinstance(content, Mapping):
        raise StageError(f"the checkpoint contains a {type(content).__name__}, not a mapping",
                         fix="save model.state_dict()")  # fmt: skip
    if not content:
        raise StageError("the checkpoint is empty: nothing was saved into it", fix="save model.state_dict()")
    if key is not None:
        return _at(content, key), key
    modules = any(isinstance(value, torch.nn.Module) for value in content.values())
    if is_state_dict(content) and not modules:
        return _taken(content), ""
    found = [(name, value) for name, value in state_dicts(content) if _usual(name)]
    if not found:
        held = [name for name, _ in state_dicts(content)]
        fix = f"set `with: {{key: {held[0]}}}`" if held else "set `with: {key: …}`"
        raise StageError(
            f"the checkpoint has no state_dict under a usual key, only {_keys(content)}", fix=fix
        )
    name, value = min(found, key=lambda pair: (_usual(pair[0]), pair[0].count(".")))
    return _taken(value), name


def is_ema(key: str) -> bool:
    """Say whether a key is one of averaged weights."""
    return any(part in EMA for part in key.split("."))


def state_dicts(content: Any) -> list[tuple[str, Any]]:
    """Return the state_dicts of a checkpoint by their (dotted) key, and whole modules as such.

    Under a usual key, other values may be among the tensors.
    """
    return list(_inside(content, "", _MOST_DEEP))


def _inside(content: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    for name, value in content.items() if isinstance(content, Mapping) and depth else ():
        key = f"{path}{name}"
        if isinstance(value, torch.nn.Module) or (is_state_dict(value) and (_usual(key) or _is_pure(value))):
            yield key, value
        elif isinstance(value, Mapping) and "param_groups" not in value:
            yield from _inside(value, f"{key}.", depth - 1)


def _is_pure(state: Mapping[str, Any]) -> bool:
    import torch

    return all(isinstance(value, torch.Tensor) or name.endswith(SUFFIX) for name, value in state.items())


def _usual(key: str) -> int:
    """Return the rank of a key among the usual ones from 1, or 0: averaged weights are last."""
    ranks = [(*_RAW, *EMA).index(part) + 1 for part in key.split(".") if part in (*_RAW, *EMA)]
    return max(ranks, default=0)


def _at(content: Mapping[Any, Any], key: str) -> StateDict:
    import torch

    found: Any = content
    for part in [key] if key in content else key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise StageError(f"the checkpoint has no key {key!r}, only {_keys(content)}",
                             fix="set `key` to that of the weights")  # fmt: skip
        found = found[part]
    if isinstance(found, torch.nn.Module) or is_state_dict(found):
        return _taken(found)
    listed = found.get("shadow_params") if isinstance(found, Mapping) else found
    if isinstance(listed, list | tuple) and listed and all(isinstance(t, torch.Tensor) for t in listed):
        tensors = counted(len(listed), "tensor")
        raise StageError(f"{key!r} of the checkpoint is a list of {tensors} without names",
                         fix="copy them into the model (ema.copy_to), and save its state_dict")  # fmt: skip
    raise StageError(
        f"{key!r} of the checkpoint is not a state_dict of tensors",
        fix=f"set `key` to that of the weights; the checkpoint has {_keys(content)}",
    )


def _taken(value: Any) -> StateDict:
    """Return a state_dict, or that of a module, with the versions that can be written as JSON."""
    import torch

    state = value.state_dict() if isinstance(value, torch.nn.Module) else value
    given = getattr(state, "_metadata", None) or getattr(state, "versions", None) or {}
    plain = {
        str(module): {k: v for k, v in said.items() if v is None or type(v) in (bool, int, str)}
        for module, said in given.items()
        if isinstance(said, Mapping)
    }
    return StateDict(state, versions=plain)


def is_state_dict(value: Any) -> bool:
    """Say whether it is a mapping of names to tensors, whatever extra states are among them."""
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and any(isinstance(v, torch.Tensor) for v in value.values())
        and all(isinstance(k, str) for k in value)
        and not any(isinstance(v, Mapping) and not k.endswith(SUFFIX) for k, v in value.items())
    )


def _keys(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def strip_wrappers(weights: StateDict, prefix: str | None) -> StateDict:
    """Return the weights without the prefixes of DDP, torch.compile and FSDP, or `prefix`.

    An empty `prefix` leaves every name as it is. What was taken off is in `stripped`: a model may
    have a child of its own that is called `module`.
    """
    if prefix == "":
        return weights
    if prefix:
        if not any(name.startswith(prefix) for name in weights):
            raise StageError(f"no key of the state_dict begins with {prefix!r}",
                             fix=f"the first is {next(iter(weights))!r}")  # fmt: skip
        inside = {k: v for k, v in weights.items() if k.startswith(prefix)}
        return _without(StateDict(inside, versions=weights.versions), prefix)
    while True:
        counters = {k for k in weights if _unwrapped(k) == _AVERAGED}
        rest = {name: value for name, value in weights.items() if name not in counters}
        if counters and rest and all(_unwrapped(name).startswith("module.") for name in rest):
            weights = StateDict(rest, versions=weights.versions, stripped=weights.stripped)
        found = next((w for w in _WRAPPERS if all(name.startswith(w) for name in weights)), None)
        if found is None:
            return _without_inner(weights)
        weights = _without(weights, found)


def _without(weights: StateDict, prefix: str) -> StateDict:
    found = weights.renamed({name: name.removeprefix(prefix) for name in weights}, prefix)
    found.stripped.append(prefix)
    return found


def _without_inner(weights: StateDict) -> StateDict:
    """Take the wrappers of submodules out of the names, e.g. of a layer that was compiled alone."""
    names = {name: _unwrapped(name) for name in weights}
    if len(set(names.values())) < len(names):
        return weights  # Two names would become one: they are not wrappers.
    return weights.renamed(names)


def _unwrapped(name: str) -> str:
    for wrapper in _INSIDE:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def _without_parallel_parts(state: StateDict, known: set[str]) -> StateDict:
    """Take the wrapper off parts that DataParallel wrapped alone, where the model has them without it."""
    names = {name: name.replace(_PART, ".") for name in state if _PART in name and name not in known}
    if not names or not known.issuperset(names.values()):
        return state
    versions = {f"{path}.".replace(_PART, ".")[:-1]: given for path, given in state.versions.items()}
    values = {names.get(name, name): value for name, value in state.items()}
    return StateDict(values, versions=versions, stripped=state.stripped, refit=f"-*{_PART}")


def refitted(weights: Mapping[str, Any], model: Iterable[str]) -> StateDict:
    """Return weights under the model's names, where a prefix of all is the only difference.

    Tried where no name is one of the model's: what `strip_wrappers` took off is put back, or what a
    training class puts before them (Lightning's `model.`) is taken off. The `module.` of a part that was
    wrapped alone is taken out in any case. Raises StageError where two
    prefixes fit alike (student and teacher, weights and their average): which to take is the user's.
    """
    state = weights if isinstance(weights, StateDict) else _taken(weights)
    known = set(model)
    state = _without_parallel_parts(state, known)
    if not known or any(name in known for name in state):
        return state
    candidates = ["".join(state.stripped[at:]) for at in range(len(state.stripped))]
    for add in reversed(candidates):
        if all(add + name in known or name.endswith(SUFFIX) for name in state):
            found = state.renamed({name: add + name for name in state}, "", add)
            found.refit = f"+{add}"
            return found
    counts: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for at in range(1, min(len(parts), _MOST_PARTS + 1)):
            if ".".join(parts[at:]) in known:
                prefix = ".".join(parts[:at]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    best = [prefix for prefix, count in counts.items() if count == max(counts.values(), default=0)]
    if not best:
        return state
    if len(best) > 1:
        said = f"the weights match the model under {' and under '.join(sorted(best))}"
        raise StageError(said, fix=f"choose one on checkpoint.state_dict with `strip_prefix: {min(best)}`")
    names = {name: name.removeprefix(best[0]) for name in state if name.startswith(best[0])}
    found = state.renamed(names, best[0])
    found.refit = f"-{best[0]}"
    return found
