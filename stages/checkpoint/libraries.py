"""Recognise the models of timm and torchvision: what they are called, or the names of their weights."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from .fitting import CLASSES, Shapes, refined, shapes_of

_TIMM, _VISION = "timm:create_model", "torchvision.models"
_KINDS = ("", ".segmentation", ".detection", ".video")
_FIRST = ("AuxLogits", "Conv2d_1a_3x3", "avgpool", "backbone", "class_token", "classifier", "conv1",
          "conv_proj", "features", "layer1", "layers", "stem")  # fmt: skip
"""With what the names of torchvision's weights begin, as of 0.28."""
_MOST_TENSORS = 3000
_TIMM_SIZES = {"num_classes": CLASSES, "in_chans": {3}}


def recognised(tensors: Shapes, named: tuple[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the factory and its arguments for weights of these names and shapes, or None.

    `named` is what the checkpoint calls its architecture, and the values beside it.
    """
    name, said = named
    if name and importlib.util.find_spec("timm") and (found := _of_timm(name, said, tensors)):
        return found
    if len(tensors) > _MOST_TENSORS or not importlib.util.find_spec("torchvision"):
        return None
    return _of_torchvision(name, tensors) if any(n.startswith(_FIRST) for n in tensors) else None


def _of_timm(name: str, said: Mapping[str, Any], tensors: Shapes) -> dict[str, Any] | None:
    import timm

    bare = name.partition("/")[2] or name
    if not timm.is_model(bare.partition(".")[0]):
        return None
    kwargs: dict[str, Any] = {"model_name": bare.partition(".")[0]}
    for key in ("num_classes", "in_chans", "img_size", "global_pool"):
        value = said.get(key)
        if isinstance(value, (int, str)) and not isinstance(value, bool) and value:
            kwargs[key] = value
    return _fitting(_TIMM, timm.create_model, tensors, kwargs, _TIMM_SIZES)


def _of_torchvision(name: str, tensors: Shapes) -> dict[str, Any] | None:
    import torchvision

    fitting = []
    families: dict[str, bool] = {}
    for model in sorted(torchvision.models.list_models(), key=lambda model: model != name):
        build = torchvision.models.get_model_builder(model)
        place = next((kind for kind in _KINDS if _public(torchvision.models, kind, build)), None)
        family = build.__module__
        if place is not None and family not in families:
            families[family] = _is_alike(build, tensors)
        if place is None or not families[family]:
            continue
        found = _fitting(f"{_VISION}{place}:{build.__name__}", build, tensors, _given(build, tensors),
                         {"num_classes": CLASSES})  # fmt: skip
        fitting += [found] if found else []
        if fitting and model == name:
            break
    return {**fitting[0], "also": [other["factory"] for other in fitting[1:]]} if fitting else None


def _is_alike(build: Callable[..., Any], tensors: Shapes) -> bool:
    """Say whether the names of a model's weights begin as those of the file: so do its whole family's."""
    try:
        with _unfilled():
            own = build(**_given(build, tensors)).state_dict()
    except Exception:  # Libraries refuse arguments in any way; what can't be built isn't what it is.
        return False
    return {name.partition(".")[0] for name in own} == {name.partition(".")[0] for name in tensors}


def _public(models: Any, kind: str, build: Callable[..., Any]) -> bool:
    place = getattr(models, kind.removeprefix("."), None) if kind else models
    return getattr(place, build.__name__, None) is build


def _given(build: Callable[..., Any], tensors: Shapes) -> dict[str, Any]:
    """Return the arguments with which nothing is downloaded, with the auxiliary head if there is one."""
    named = inspect.signature(build).parameters
    kwargs: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in named else {}
    aux = "aux_loss" in named and any(name.startswith("aux_classifier") for name in tensors)
    return kwargs | ({"aux_loss": True} if aux else {})


def _fitting(
    factory: str,
    build: Callable[..., Any],
    tensors: Shapes,
    kwargs: dict[str, Any],
    sizes: Mapping[str, Set[int]],
) -> dict[str, Any] | None:
    """Return the factory with the arguments that fit the weights exactly, or None."""
    try:
        with _unfilled():
            found = refined(build, kwargs, tensors, sizes)
            fits = shapes_of(build(**found)) == dict(tensors)
    except Exception:  # As above.
        return None
    return {"factory": factory, "kwargs": found, "also": []} if fits else None


@contextmanager
def _unfilled() -> Iterator[None]:
    """Build modules whose weights are not filled with values: memory that nothing writes to costs nothing.

    On the meta device some can't be built: RegNet and SSD look at values of tensors while they are.
    """
    from torch import nn

    fillers = {n: f for n, f in vars(nn.init).items() if n.endswith("_") and not n.startswith("_")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in fillers:
                setattr(nn.init, name, lambda tensor, *_, **__: tensor)
            yield
        finally:
            for name, filler in fillers.items():
                setattr(nn.init, name, filler)
