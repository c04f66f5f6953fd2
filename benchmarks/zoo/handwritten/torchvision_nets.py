"""Models that torchvision builds from objects, or that take a list: with a module of the user's around them."""

import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import FCNHead


class Detector(nn.Module):
    """One picture [3, H, W] → boxes, labels, scores."""

    def __init__(self, name):
        super().__init__()
        build = getattr(torchvision.models.detection, name)
        sizes = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 256}
        self.net = build(weights=None, weights_backbone=None, num_classes=4, **sizes)
        for layer in self.net.modules():
            if name.startswith("ssd") and isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        found = self.net([x])[0]
        return found["boxes"], found["labels"], found["scores"]


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        net = resnext()
        body = nn.ModuleDict({n: m for n, m in net.named_children() if n not in ("avgpool", "fc")})
        self.body = nn.Sequential(*body.values())
        self.head = FCNHead(1024, 5)

    def forward(self, x):
        found = self.head(self.body(x))
        return nn.functional.interpolate(found, size=x.shape[-2:], mode="bilinear", align_corners=False)


def detector(name):
    return Detector(name)


def fcn():
    return Segmenter()


def resnext():
    net = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=4, width_per_group=4)
    net.layer4, net.fc = nn.Identity(), nn.Linear(1024, 10)
    return net


def convnext():
    return ConvNeXt(
        [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)], num_classes=10
    )
