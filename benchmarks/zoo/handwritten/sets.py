"""Graphs, sets, experts, flows and distributions."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class GraphNet(nn.Module):
    """Two rounds of messages along edges, with degrees by scatter."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(24, 4)

    def forward(self, nodes, edges):
        source, target = edges
        degree = torch.zeros(nodes.size(0)).index_add_(
            0, target, torch.ones_like(target, dtype=torch.float32)
        )
        h = self.a(nodes).relu()
        summed = torch.zeros_like(h).index_add(0, target, h[source])
        most = torch.zeros_like(h).scatter_reduce(0, target[:, None].expand(-1, 12), h[source], "amax")
        mean = summed / degree.clamp(min=1)[:, None]
        return self.b(torch.cat([mean, most], -1))


class GraphAttention(nn.Module):
    """A softmax over the edges that end in a node."""

    def __init__(self):
        super().__init__()
        self.value, self.score = nn.Linear(8, 6), nn.Linear(12, 1)

    def forward(self, nodes, edges):
        v = self.value(nodes)
        s, t = edges[0], edges[1]
        e = F.leaky_relu(self.score(torch.cat([v[s], v[t]], -1)).squeeze(-1), 0.2)
        w = (e - e.max()).exp()
        total = torch.zeros(nodes.shape[0]).scatter_add(0, t, w)
        return torch.zeros_like(v).index_add(0, t, v[s] * (w / total[t]).unsqueeze(-1))


class DeepSets(nn.Module):
    """Sums over a padded set; the answer doesn't depend on the order."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 16))
        self.rho = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, points, mask):
        m = mask[..., None].to(points.dtype)
        h = self.phi(points) * m
        return self.rho(torch.cat([h.sum(1) / m.sum(1), (h - 1e4 * (1 - m)).amax(1)], -1))


class Experts(nn.Module):
    """A mixture of experts: the two best for each token, weighted."""

    def __init__(self, count=4, width=12):
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.up = nn.Parameter(torch.randn(count, width, 24) * 0.2)
        self.down = nn.Parameter(torch.randn(count, 24, width) * 0.2)

    def forward(self, x):
        weight, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        every = torch.einsum("btd,edh->bteh", x, self.up).relu()
        every = torch.einsum("bteh,ehd->bted", every, self.down)
        picked = every.gather(2, chosen[..., None].expand(-1, -1, -1, x.size(-1)))
        return x + (picked * weight[..., None]).sum(2), chosen


class RoutedExperts(nn.Module):
    """The same by lists: each expert is given its tokens and adds them back."""

    def __init__(self, count=3, width=8):
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)) for _ in range(count)
        )

    def forward(self, x):
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return out


class RealNvp(nn.Module):
    """A normalising flow: log-likelihood of each point."""

    def __init__(self, width=6, layers=4):
        super().__init__()
        self.register_buffer("mask", torch.arange(width).remainder(2).float())
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, 2 * width)) for _ in range(layers)
        )

    def forward(self, x):
        logdet = x.new_zeros(x.shape[0])
        for number, net in enumerate(self.nets):
            m = self.mask if number % 2 == 0 else 1 - self.mask
            s, t = net(x * m).chunk(2, -1)
            s = torch.tanh(s) * (1 - m)
            x = x * m + (1 - m) * (x * s.exp() + t)
            logdet = logdet + s.sum(-1)
        return x, -0.5 * (x**2 + math.log(2 * math.pi)).sum(-1) + logdet


class Vae(nn.Module):
    """Draws a sample in training only; outputs are a dictionary."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(20, 16), nn.Linear(4, 20)
        self.mu, self.logvar = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        h = F.softplus(self.enc(x), beta=2.0)
        mu, logvar = self.mu(h), self.logvar(h).clamp(-8, 8)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(-1)
        return {"reconstruction": self.dec(z).sigmoid(), "mu": mu, "kl": kl}


class MixtureDensity(nn.Module):
    """Negative log-likelihood of y under a mixture that x chooses, by torch.distributions."""

    def __init__(self, parts=3):
        super().__init__()
        self.body = nn.Linear(5, 32)
        self.pi, self.mu, self.sigma = (nn.Linear(32, parts) for _ in range(3))

    def forward(self, x, y):
        h = torch.tanh(self.body(x))
        normal = torch.distributions.Normal(self.mu(h), F.softplus(self.sigma(h)) + 1e-3, validate_args=False)
        return -torch.logsumexp(self.pi(h).log_softmax(-1) + normal.log_prob(y), -1), self.pi(h).argmax(-1)


class Ranker(nn.Module):
    """Sorts, accumulates, searches: the odd operators of recommenders; a whole number among the outputs."""

    def __init__(self):
        super().__init__()
        self.score = nn.Bilinear(6, 6, 1)

    def forward(self, user, items):
        s = self.score(user[:, None].expand(-1, items.size(1), -1).contiguous(), items).squeeze(-1)
        ordered, order = s.sort(dim=1, descending=True)
        share = ordered.softmax(1).cumsum(1)
        kept = (share < 0.9).sum(1, keepdim=True) + 1
        return order, share, kept, torch.where(torch.arange(s.size(1)) < kept, ordered, -1e9)


class RunningNorm(nn.Module):
    """Normalises by statistics that it would update in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(5) * 0.3)
        self.register_buffer("var", torch.rand(5) + 0.5)
        self.register_buffer("steps", torch.tensor(17))
        self.net = nn.Linear(5, 3)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
            self.steps += 1
        return self.net((x - self.mean) * torch.rsqrt(self.var + 1e-5)).clamp(-5, 5)


class Tensorised(nn.Module):
    """Einsums of four operands, and a trace over their products."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3, 5) * 0.4), nn.Parameter(torch.randn(5, 2, 6) * 0.4)
        self.c = nn.Parameter(torch.randn(6, 3) * 0.4)

    def forward(self, x, y):
        z = torch.einsum("bi,iaj,jck,kd->bacd", x, self.a, self.b, self.c)
        w = torch.einsum("bacd,bc->bad", z, y)
        return torch.einsum("baa->b", w @ w.mT), torch.einsum("bad,bed->bae", w, w)
