"""Models of pictures."""

import torch
import torch.nn.functional as F
from torch import nn


def block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.GroupNorm(2, cout), nn.SiLU())


class UNet(nn.Module):
    """Any size: what was pooled away is padded back before the skip is joined."""

    def __init__(self, width=8):
        super().__init__()
        self.d1, self.d2, self.mid = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.u2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.c2 = block(4 * width, 2 * width)
        self.u1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.c1 = block(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def join(self, up, skip):
        dh, dw = skip.size(2) - up.size(2), skip.size(3) - up.size(3)
        return torch.cat([skip, F.pad(up, [dw // 2, dw - dw // 2, dh // 2, dh - dh // 2])], 1)

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.mid(F.max_pool2d(b, 2))
        b = self.c2(self.join(self.u2(c), b))
        return self.out(self.c1(self.join(self.u1(b), a)))


class PadToMultiple(nn.Module):
    """Pads a picture to a multiple of 8, works on it, and cuts the padding off."""

    def __init__(self, multiple=8):
        super().__init__()
        self.multiple = multiple
        self.net = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.GELU(), nn.ConvTranspose2d(16, 3, 8, 8))

    def forward(self, x):
        h, w = x.shape[-2:]
        x = F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple), mode="reflect")
        return self.net(x)[..., :h, :w]


class SuperResolution(nn.Module):
    def __init__(self, scale=3):
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(12), nn.Conv2d(12, 3 * scale**2, 3, padding=1)
        )

    def forward(self, x):
        base = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return F.pixel_shuffle(self.body(x), self.scale) + base


class Yolo(nn.Module):
    """A detection head whose grid follows the picture."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4, 1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.1),
            nn.Conv2d(16, 32, 3, 4, 1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(32, 2 * (5 + classes), 1)
        self.register_buffer("anchors", torch.tensor([[10.0, 14.0], [37.0, 58.0]]))

    def forward(self, x):
        y = self.head(self.body(x))
        n, _, h, w = y.shape
        y = y.view(n, 2, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2)
        gy, gx = torch.meshgrid(
            torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij"
        )
        grid = torch.stack((gx, gy), -1).to(y.dtype)
        xy = (y[..., :2].sigmoid() * 2 - 0.5 + grid) * 16
        wh = (y[..., 2:4].sigmoid() * 2) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
        return torch.cat((xy, wh, y[..., 4:].sigmoid()), -1).reshape(n, -1, 5 + self.classes)


class SpatialTransformer(nn.Module):
    """Looks at the picture through an affine window that it chooses."""

    def __init__(self):
        super().__init__()
        self.locate = nn.Sequential(
            nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 6)
        )
        self.read = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
        nn.init.zeros_(self.locate[-1].weight)
        self.locate[-1].bias.data = torch.tensor([0.8, 0.1, 0.05, -0.1, 0.9, 0.0])

    def forward(self, image):
        theta = self.locate(image).view(-1, 2, 3)
        grid = F.affine_grid(theta, image.size(), align_corners=False)
        return F.log_softmax(self.read(F.grid_sample(image, grid, align_corners=False)), dim=1)


class RoiReader(nn.Module):
    """Features of boxes (x1, y1, x2, y2 in 0..1), sampled from the map of one picture."""

    def __init__(self, size=5):
        super().__init__()
        self.size = size
        self.body = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8 * size * size, 4)

    def forward(self, image, boxes):
        features = self.body(image).relu()
        lin = torch.linspace(0, 1, self.size)
        low, high = boxes.sigmoid()[:, :2] * 0.5, boxes.sigmoid()[:, 2:] * 0.5 + 0.5
        x = low[:, :1] + (high - low)[:, :1] * lin
        y = low[:, 1:] + (high - low)[:, 1:] * lin
        count = boxes.size(0)
        grid = (
            torch.stack(
                (x[:, None, :].expand(-1, self.size, -1), y[:, :, None].expand(-1, -1, self.size)), -1
            )
            * 2
            - 1
        )
        found = F.grid_sample(features.expand(count, -1, -1, -1), grid, mode="bilinear", align_corners=True)
        return self.head(found.flatten(1))


class PatchFold(nn.Module):
    """Overlapping patches, changed one by one and summed up again."""

    def __init__(self):
        super().__init__()
        self.change = nn.Linear(3 * 16, 3 * 16)

    def forward(self, x):
        size = x.shape[-2:]
        patches = F.unfold(x, 4, padding=1, stride=2)
        patches = self.change(patches.transpose(1, 2)).transpose(1, 2)
        return F.fold(patches, size, 4, padding=1, stride=2)


class MlpMixer(nn.Module):
    def __init__(self, side=32, patch=8, width=24):
        super().__init__()
        count = (side // patch) ** 2
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(count, 32), nn.GELU(), nn.Linear(32, count))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = x + self.tokens(self.norm1(x).mT).mT
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))


class Capsules(nn.Module):
    """Three rounds of routing by agreement between groups of neurons."""

    def __init__(self, classes=5, size=8):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 9, 4)
        self.weight = nn.Parameter(torch.randn(classes, 6 * 6 * 4, size, 8) * 0.1)

    @staticmethod
    def squash(s):
        n = (s**2).sum(-1, keepdim=True)
        return n / (1 + n) * s / (n + 1e-8).sqrt()

    def forward(self, x):
        u = self.conv(x).relu().reshape(x.size(0), 4, 8, -1).permute(0, 1, 3, 2).flatten(1, 2)
        votes = torch.einsum("cisd,bid->bcis", self.weight, self.squash(u))
        logits = torch.zeros(votes.shape[:3])
        for _ in range(3):
            share = logits.softmax(1)
            v = self.squash((share.unsqueeze(-1) * votes).sum(2))
            logits = logits + torch.einsum("bcis,bcs->bci", votes, v)
        return v.norm(dim=-1)


class Haar(nn.Module):
    """Two levels of a wavelet, soft thresholds, and back."""

    def __init__(self):
        super().__init__()
        low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
        bank = torch.stack([torch.outer(a, b) for a in (low, high) for b in (low, high)])
        self.register_buffer("bank", bank[:, None])
        self.threshold = nn.Parameter(torch.full((2, 3), 0.3))

    def level(self, x, depth):
        n, c, h, w = x.shape
        bands = F.conv2d(x.reshape(n * c, 1, h, w), self.bank, stride=2)
        approx, details = bands[:, :1], bands[:, 1:]
        t = self.threshold[depth].view(1, 3, 1, 1)
        details = details.sign() * (details.abs() - t).clamp(min=0)
        if depth == 0:
            approx = self.level(approx, 1)
        back = F.conv_transpose2d(torch.cat([approx, details], 1), self.bank, stride=2)
        return back.view(n, c, h, w)

    def forward(self, x):
        return self.level(x, 0)


class Spectral(nn.Module):
    """Spectral and weight norms, as GANs use them."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, 2, 1))
        self.c = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 1))

    def forward(self, x):
        x = F.leaky_relu(self.b(F.leaky_relu(self.a(x), 0.2)), 0.2)
        return self.c(x.mean((2, 3)))
