import torch
from model import build

torch.manual_seed(0)
old = {
    "c.parametrizations.weight.original0": "c.weight_g",
    "c.parametrizations.weight.original1": "c.weight_v",
}
torch.save({old.get(name, name): value for name, value in build().state_dict().items()}, "ck.pt")
