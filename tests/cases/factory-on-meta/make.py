import torch
from model import Net

torch.manual_seed(0)
torch.save(Net().state_dict(), "ck.pt")
