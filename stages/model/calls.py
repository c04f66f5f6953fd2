"""Call forward() alike everywhere: the reference, every conversion, and what loads the result.

A model's inputs are an ordered list of tensors by name. forward()'s *arguments* are trees of such names:
mostly one name each, else a dict, a list or a class of them. `bind` says how forward() takes its arguments,
by position or by name; `call` runs a module so; `adapted` makes a module whose forward() takes exactly the
inputs, by position, for the exporters, most of which know nothing else.
"""

from __future__ import annotations

import hashlib
import inspect
import keyword
import linecache
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest

from . import results
from .nesting import Tree, leaves
from .structures import Writer, hints_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Arguments", "Binding", "Expression", "adapted", "arguments", "bind", "call", "expression",
           "forwarding", "in_order", "narrowed"]  # fmt: skip

Arguments = Mapping[str, Tree]
"""Argument of forward() → its input, or the tree of them that it is made of."""

_OWN, _FLAT = "_own_forward", "_flat_result"
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Binding:
    """How forward() takes its arguments: the `positional` ones in order, then the `named` ones by name.

    `plain` says that forward() itself takes exactly a prefix of its ordinary parameters.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class Expression:
    """A call of forward() as one writes it: `x, shift=shift`, or `Batch(x=x, mask=mask)`.

    `words` are the variables by input, in order; `kinds` the classes that it names.
    """

    text: str
    words: Mapping[str, str]
    kinds: Mapping[str, type]


def arguments(module: nn.Module) -> list[str]:
    """Return the names that forward() gives its arguments, those of `*` and `**` left out."""
    return [p.name for p in _parameters(module) if p.kind in _NAMED]


def in_order(module: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of inputs in forward()'s order; those it doesn't name come last, as given.

    Raises StageError for a name that forward() has no place for.
    """
    known = arguments(module)
    others = [name for name in names if name not in known]
    kinds = {p.kind for p in _parameters(module)}
    if others and not kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        whole = len(known) == 1 and others == list(names)
        nest = (
            f"if {known[0]} is made of them, write `example: {{{known[0]}: {{{others[0]}: …}}}}`"
            if whole
            else ""
        )
        raise StageError(f"forward() has no argument {others[0]!r}, it has {', '.join(known) or 'none'}",
                         fix=closest(others[0], known) or nest)  # fmt: skip
    if Parameter.VAR_KEYWORD not in kinds and others != sorted(others):  # Keys of a mapping have no order.
        raise StageError(f"forward() takes {', '.join(others)} by position only, and the names don't "
                         "define their order", fix="use names that sort: input_0, input_1")  # fmt: skip
    return [name for name in known if name in names] + others


def bind(module: nn.Module, names: Sequence[str]) -> Binding:
    """Return how forward() takes the arguments `names`, which are in its order.

    An argument that may be left out, and is, keeps its default. Raises StageError for one that may not,
    and for one that can't be skipped because it has no name to callers.
    """
    given = list(names)
    positional: list[str] = []
    named: list[str] = []
    skipped: Parameter | None = None
    plain = True
    for parameter in _parameters(module):
        if parameter.kind in _NAMED:
            if parameter.name not in given:
                _refuse_missing(parameter)
                skipped = skipped or (parameter if parameter.kind in _POSITIONAL else None)
                continue
            given.remove(parameter.name)
            if parameter.kind == Parameter.KEYWORD_ONLY or (
                skipped is not None and parameter.kind == Parameter.POSITIONAL_OR_KEYWORD
            ):
                named.append(parameter.name)
                continue
            _refuse_gap(skipped, parameter.name)
            positional.append(parameter.name)
            plain = plain and parameter.kind == Parameter.POSITIONAL_OR_KEYWORD
        elif given and _by_position(parameter, module, given):
            taken = [name for name in given if name not in arguments(module)]
            if taken:
                _refuse_gap(skipped, taken[0])
            positional.extend(taken)
            given = [name for name in given if name not in taken]
            plain = plain and not taken
        elif parameter.kind == Parameter.VAR_KEYWORD:
            named.extend(given)
            given = []
    return Binding(tuple(positional), tuple(named), plain and not named)


def _by_position(parameter: Parameter, module: nn.Module, given: Sequence[str]) -> bool:
    """Say whether a `*` takes what is left: where there is a `**` too, names say more than places."""
    if parameter.kind != Parameter.VAR_POSITIONAL:
        return False
    by_name = any(p.kind == Parameter.VAR_KEYWORD for p in _parameters(module))
    return not by_name or list(given) in (["input"], [parameter.name])


def _refuse_missing(parameter: Parameter) -> None:
    if parameter.default is Parameter.empty:
        raise StageError(f"forward() requires the argument {parameter.name!r}, which has no example",
                         fix=f"add `example.{parameter.name}`")  # fmt: skip


def _refuse_gap(skipped: Parameter | None, name: str) -> None:
    if skipped is not None:
        raise StageError(f"forward() takes {name!r} by position only, after {skipped.name!r}, which has "
                         "no example",
                         fix=f"add `example.{skipped.name}`, or remove {name!r}")  # fmt: skip


def _parameters(module: nn.Module) -> list[Parameter]:
    """Return the parameters of forward(); a TorchScript module's are in its schema."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is None:
        return list(inspect.signature(module.forward).parameters.values())
    return [
        Parameter(a.name, Parameter.POSITIONAL_OR_KEYWORD,
                  default=a.default_value if a.has_default_value() else Parameter.empty)
        for a in schema.arguments[1:]
    ]  # fmt: skip


def call(module: nn.Module, inputs: Mapping[str, Any], given: Arguments | None = None) -> Any:
    """Run a module on inputs by name, of which its arguments are made; each is one where none are given."""
    written = expression(module, given or {name: name for name in inputs})
    values = {word: inputs[name] for name, word in written.words.items()}
    return eval(f"{_OWN}({written.text})", {**written.kinds, **values, _OWN: module})


def expression(module: nn.Module, given: Arguments) -> Expression:
    """Return how forward() is called with arguments that are made of inputs.

    Raises StageError where it can't be, or an argument's class has other fields.
    """
    binding = bind(module, list(given))
    names = [name for _, name in leaves(given)]
    words: dict[str, str] = {}
    for place, name in enumerate(names):
        words[name] = _word(name, place)
        while list(words.values()).count(words[name]) > 1:
            words[name] += "_"
    writer, hints = Writer(words), hints_of(module.forward)
    several = {p.kind: p.name for p in _parameters(module) if p.kind not in _NAMED}
    texts: list[str] = []
    for name in binding.positional:
        tree = given[name]
        if isinstance(tree, list) and name == several.get(Parameter.VAR_POSITIONAL):
            texts += [writer.text(child, hints.get(name), (name, i)) for i, child in enumerate(tree)]
        else:
            texts.append(writer.text(tree, hints.get(name), (name,)))
    for name in binding.named:
        tree = given[name]
        by_name = {name: tree}
        if isinstance(tree, dict) and name == several.get(Parameter.VAR_KEYWORD):
            by_name = tree
        for key, child in by_name.items():
            if _word(key, 0) != key:
                raise StageError(f"the input {key!r} can't be passed to forward() as a keyword argument")
            texts.append(f"{key}={writer.text(child, hints.get(name), (key,))}")
    return Expression(", ".join(texts), words, writer.kinds)


def adapted(module: nn.Module, given: Arguments, *, kept: Sequence[int] | None = None) -> nn.Module:
    """Make a module's forward() take exactly the inputs that its arguments are made of, by position.

    With `kept` it returns a tuple of these parts of its result. It stays the same object with the same
    names of weights: where forward() isn't so already, the object gets a class of its own, whose forward()
    calls the one it had. That has source text, which torch.jit.script reads.
    """
    plain = all(isinstance(tree, str) for tree in given.values())
    if plain and bind(module, list(given)).plain and kept is None:
        return module
    written = expression(module, given)
    kind = type(module)
    own = vars(module).pop("forward", None) or kind.forward  # Some libraries replace it on the object.
    forward = _forward(written, kept)
    namespace = {_OWN: _renamed(own) if own is kind.forward else staticmethod(own), "forward": forward,
                 "__module__": kind.__module__, "__qualname__": kind.__qualname__,
                 "__doc__": kind.__doc__}  # fmt: skip
    try:
        module.__class__ = type(kind.__name__, (kind,), namespace)
    except TypeError as error:
        raise StageError("forward() is TorchScript, which can't be called with these inputs",
                         fix="add an example for each of its arguments, in order") from error  # fmt: skip
    return module


def narrowed(program: Any, names: Sequence[str]) -> Any:
    """Return TorchScript whose forward() takes exactly the inputs `names`, by position.

    What may be left out, and is, keeps its default: some converters count all arguments.
    """
    import torch

    if bind(program, names).plain and len(arguments(program)) == len(names):
        return program
    written = expression(program, {name: name for name in names})
    around = type("Around", (torch.nn.Module,), {"forward": _forward(written, None)})()
    setattr(around, _OWN, program)
    return torch.jit.script(around.eval())


def forwarding(own: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the methods of a class whose forward() takes inputs of these names, and passes them to `own`."""
    written = Expression(", ".join(names), {name: name for name in names}, {})
    return {_OWN: own, "forward": _forward(written, None)}


def _word(name: str, place: int) -> str:
    fits = name.isidentifier() and not keyword.iskeyword(name) and name not in ("self", _OWN, _FLAT)
    return name if fits else f"input_{place}"


def _renamed(own: Any) -> Any:
    """Return the function under its new name, by which TorchScript tells methods apart."""
    if not inspect.isfunction(own):
        return own
    copy = types.FunctionType(own.__code__, own.__globals__, _OWN, own.__defaults__, own.__closure__)
    copy.__kwdefaults__, copy.__annotations__ = own.__kwdefaults__, own.__annotations__
    return copy


def _forward(written: Expression, kept: Sequence[int] | None) -> Any:
    """Return `forward(self, WORDS)`, with source that inspect and TorchScript find."""
    called = f"self.{_OWN}({written.text})"
    result = called if kept is None else f"{_FLAT}({called}, {tuple(kept)})"
    source = f"def forward(self, {', '.join(written.words.values())}):\n    return {result}\n"
    name = f"<forward {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    made: dict[str, Any] = {_FLAT: results.chosen, **written.kinds}
    exec(compile(source, name, "exec"), made)
    return made["forward"]
