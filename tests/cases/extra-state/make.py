import torch
from model import build

torch.manual_seed(0)
module = build()
module.scale = 3.0
torch.save(module.state_dict(), "ck.pt")
