"""Nets of kinds that a converter may not have in mind: their source, example and further parameters."""

from __future__ import annotations

from typing import Any

NETS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "recurrent": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.LSTM(6, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, steps):
        return self.head(self.steps(steps)[0][:, -1])
""",
        {"shape": [2, 7, 6]},
        {"dynamic": {"steps": {0: "batch", 1: "length"}}},
    ),
    "two inputs of free sizes": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.row = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

    def forward(self, picture, row):
        found = self.conv(picture) + self.row(row)[:, :, None, None]
        return {"map": torch.sigmoid(found), "mean": found.mean((2, 3))}
""",
        {"picture": {"shape": [2, 3, 16, 12]}, "row": {"shape": [2, 5]}},
        {"dynamic": {"picture": {0: "batch", 2: "height", 3: "width"}, "row": {0: "batch"}}},
    ),
    "detector": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.box, self.kind = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 7, 1)

    def forward(self, image):
        found = torch.relu(self.body(image))
        boxes = self.box(found).flatten(2).transpose(1, 2)
        score, label = self.kind(found).flatten(2).transpose(1, 2).softmax(-1).max(-1)
        best, places = score.topk(5, dim=1)
        chosen = label.gather(1, places)
        return boxes.gather(1, places[..., None].expand(-1, -1, 4)), best, chosen, chosen > 3
""",
        {"shape": [2, 3, 32, 32]},
        {},
    ),
    "an output twice, and the input": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        found = self.linear(x)
        return {"a": found, "same": x, "b": found * 1}
""",
        {"shape": [2, 4]},
        {},
    ),
    "timm": (
        """
import timm

def Net():
    return timm.create_model("resnet10t", num_classes=10)
""",
        {"shape": [2, 3, 64, 64]},
        {},
    ),
}
