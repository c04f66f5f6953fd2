"""Models of many habits, and their way from a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

__all__ = ["assert_right", "extract", "make", "old_names", "prepare"]

MODELS = '''
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, rows=6):
        super().__init__()
        self.embed = nn.Linear(4, rows, bias=False)
        self.head = nn.Linear(4, rows, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, x): return self.embed(x) + self.head(x)

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = self.two = nn.Linear(4, 4)
    def forward(self, x): return self.two(self.one(x))

class Sliced(nn.Module):
    """Three parameters that overlap in one storage: a matrix, its transpose, and its first rows."""
    def __init__(self):
        super().__init__()
        whole = torch.randn(4, 4)
        self.a, self.b, self.c = nn.Parameter(whole), nn.Parameter(whole.t()), nn.Parameter(whole[:2])
    def forward(self, x): return x @ self.a + x @ self.b + (x @ self.c.t()).sum(-1, keepdim=True)

class Looking(nn.Module):
    """Refers to its parameters beside their names: in a list, and as a view."""
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.listed = [part.weight for part in self.parts]
        self.view = self.parts[0].weight.detach().t()
        self.register_buffer("turned", self.parts[1].weight.detach().t(), persistent=False)
    def forward(self, x): return x @ self.listed[0] + x @ self.listed[1] + x @ self.view + x @ self.turned

class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.state = None
    def get_extra_state(self): return self.state
    def set_extra_state(self, state): self.state = state
    def forward(self, x): return self.l(x) * self.state["scale"] + self.state["shift"][(0, "a")][1]

class Renaming(nn.Module):
    """Loads an older layout by a pre-hook, and by its version."""
    _version = 2
    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4, bias=False)
        self.register_load_state_dict_pre_hook(self.rename)
    @staticmethod
    def rename(module, state, prefix, metadata, *_):
        if prefix + "old.weight" in state:
            state[prefix + "new.weight"] = state.pop(prefix + "old.weight")
        if metadata.get("version", 1) < 2:
            state[prefix + "new.weight"] = state[prefix + "new.weight"].t()
    def forward(self, x): return self.new(x)

class Overriding(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))
    def _load_from_state_dict(self, state, prefix, *rest):
        state[prefix + "w"] = state.pop(prefix + "log_w").exp()
        super()._load_from_state_dict(state, prefix, *rest)
    def forward(self, x): return x * self.w

class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.register_buffer("freq", torch.arange(4.0), persistent=False)
    def forward(self, x): return self.l(x) * self.freq

class Counting(nn.Module):
    def __init__(self, dtype="int64"):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(4, dtype=getattr(torch, dtype)))
    def forward(self, x): return self.l(x) + self.steps

class Calling(nn.Module):
    """Has a child that is called like a wrapper."""
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    def forward(self, x): return self.module(x)

class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = plain(), nn.Linear(4, 2)
    def forward(self, x): return self.head(self.features(x))

def plain(): return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
def lazy(): return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Linear(5, 2))
def half(): return nn.Linear(4, 4).half()
def lstm(): return Recurrent()
def normed(): return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh())
def on_meta(name, **kwargs):
    with torch.device("meta"): return globals()[name](**kwargs)

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.r = nn.LSTM(4, 3, batch_first=True)
    def forward(self, x): return self.r(x[:, None])[0]
'''

SCOPE: dict[str, Any] = {"__name__": "models"}
exec(MODELS, SCOPE)


def make(name: str, **kwargs: Any) -> Any:
    """Return a model of MODELS, with the weights of one seed."""
    torch.manual_seed(7)
    return SCOPE[name](**kwargs)


def extract(folder: Path, content: Any, **params: Any) -> StageRun:
    """Take the weights out of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "c.pt")
    return run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": folder / "c.pt"}, params=params
    )


def prepare(folder: Path, factory: str, content: Any, *, kwargs: Any = None, **params: Any) -> StageRun:
    """Take the weights out of a checkpoint, and prepare the model with them."""
    weights = content if isinstance(content, Path) else extract(folder, content)["weights"]
    (folder / "models.py").write_text(MODELS)
    params = {
        "factory": f"models.py:{factory}",
        "kwargs": kwargs or {},
        "example": {"shape": [2, 4]},
    } | params
    return run_stage(
        stage("model.prepare"), folder / "b", inputs={"weights": weights}, params=params, project=folder
    )


def assert_right(made: StageRun, trained: torch.nn.Module) -> None:
    """Assert that the bundle's module, loaded anew, and its reference compute what the trained one does."""
    from deploy_runner.stages.model import bundles

    bundle = bundles.load_bundle(made["model"])
    trained.eval()
    for case in bundle.cases:
        x = torch.from_numpy(case.inputs[bundle.input_names[0]])
        with torch.no_grad():
            expected = trained(x)
            torch.testing.assert_close(torch.from_numpy(case.outputs["output"]), expected)
            torch.testing.assert_close(bundle.module()(x), expected)


def old_names(state: dict[str, Any], *pairs: tuple[str, str]) -> dict[str, Any]:
    """Return a state with parts of its names replaced."""
    for new, old in pairs:
        state = {name.replace(new, old): value for name, value in state.items()}
    return state
