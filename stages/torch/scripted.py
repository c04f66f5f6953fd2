"""Compile a module by TorchScript for the inputs that it is given.

TorchScript takes an argument without a type for a tensor, and refuses its default of None. What the inputs
leave out is None for good, what they hold is a tensor: forward() is compiled as it reads then.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..model.calls import Arguments, adapted

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["script"]


def script(module: nn.Module, given: Arguments) -> torch.jit.ScriptModule:
    """Compile a module whose forward() then takes the inputs that its arguments are made of, by position.

    Raises what torch.jit.script raises.
    """
    import torch

    own = type(module).forward
    _resolve_named_tuples(getattr(own, "__globals__", {}))
    if "forward" not in vars(module) and _untyped(own):
        kind = type(module)
        spaces = {"forward": _specialised(own, list(given)), "__module__": kind.__module__,
                  "__qualname__": kind.__qualname__}  # fmt: skip
        module.__class__ = type(kind.__name__, (kind,), spaces)
    return torch.jit.script(adapted(module, given))


def _resolve_named_tuples(known: Mapping[str, Any]) -> None:
    """Resolve the types of a file's NamedTuples where they are text, which TorchScript can't read."""
    for kind in known.values():
        if isinstance(kind, type) and issubclass(kind, tuple) and "__annotations__" in vars(kind):
            try:
                kind.__annotations__ = typing.get_type_hints(kind)
            except Exception:  # A name that only a type checker imports: the compiler says so.
                continue


def _untyped(own: Any) -> bool:
    """Say whether an argument has the default None, and no type."""
    if not inspect.isfunction(own) or hasattr(own, "__wrapped__"):  # Under a decorator it reads otherwise.
        return False
    parameters = inspect.signature(own).parameters.values()
    if any(p.kind == p.POSITIONAL_ONLY for p in parameters):  # TorchScript has none.
        return False
    return any(p.default is None and p.annotation is p.empty for p in parameters)


def _specialised(own: Any, names: Sequence[str]) -> Any:
    """Return forward() with what is given first, and without what is left out and None, set in its body."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    itself = given.args[0].arg
    given.args, given.defaults, left_out = _split(given.args, given.defaults, [itself, *names])
    given.kwonlyargs, optional, others = _split(given.kwonlyargs, given.kw_defaults, names)
    given.kw_defaults = [*[None] * (len(given.kwonlyargs) - len(optional)), *optional]
    function.body[:0] = [ast.parse(f"{name} = None").body[0] for name in left_out + others]
    return _compiled(ast.unparse(ast.fix_missing_locations(tree)), own)


def _split(
    arguments: Sequence[ast.arg], defaults: Sequence[ast.expr | None], names: Sequence[str]
) -> tuple[list[ast.arg], list[Any], list[str]]:
    """Return the arguments that are given, then the ones with a default, and what becomes None."""
    padded: list[ast.expr | None] = [*[None] * (len(arguments) - len(defaults)), *defaults]
    pairs = list(zip(arguments, padded, strict=True))
    kept = [a for a, _ in pairs if a.arg in names]
    none = [a.arg for a, d in pairs if a not in kept and ast.unparse(d or ast.Name("")) == "None"]
    rest = [(a, d) for a, d in pairs if a not in kept and a.arg not in none]
    return [*kept, *(a for a, _ in rest)], [d for _, d in rest], none


def _compiled(source: str, own: Any) -> Any:
    """Return the function of a source text among the names that the original one sees."""
    outer = "".join(f"    {name} = None\n" for name in own.__code__.co_freevars)
    text = f"def around():\n{outer}{textwrap.indent(source, '    ')}\n    return {own.__name__}\n"
    name = f"<scripted {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    made: dict[str, Any] = {}
    exec(compile(text, name, "exec"), made)
    inner = made["around"]()
    return types.FunctionType(
        inner.__code__, own.__globals__, own.__name__, inner.__defaults__, own.__closure__
    )
