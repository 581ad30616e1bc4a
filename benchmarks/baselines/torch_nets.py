"""The networks of `jflow.nn` in torch, as one writes them there, with the weights of one of jflow's.

`net(t, x)` takes a batch, with one time or a time for each; images are `(N, C, H, W)`.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def tensor(array):
    return torch.from_numpy(np.array(array, np.float32))


def of(module, weight, bias):
    """A layer of torch with the numbers of a layer of flax."""
    module.weight.data, module.bias.data = tensor(weight), tensor(bias)
    return module


def linear(layer):
    weight = np.asarray(layer.kernel[...])
    return of(nn.Linear(*weight.shape), weight.T, layer.bias[...])


def conv(layer, stride=1):
    weight = np.asarray(layer.kernel[...])
    made = nn.Conv2d(*weight.shape[2:], 3, stride, padding=1)
    return of(made, weight.transpose(3, 2, 0, 1), layer.bias[...])


def group_norm(layer):
    scale = layer.norm.scale[...]
    return of(nn.GroupNorm(layer.norm.num_groups, len(scale), eps=1e-6), scale, layer.norm.bias[...])


class Features(nn.Module):
    """Fourier features of times."""

    def __init__(self, layer):
        super().__init__()
        self.register_buffer("frequencies", tensor(layer.frequencies[...]))

    def forward(self, t):
        phase = 2 * math.pi * self.frequencies * t[..., None]
        return math.sqrt(2) * torch.cat([torch.sin(phase), torch.cos(phase)], -1)


class MLP(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.layers, self.out = nn.ModuleList(map(linear, net.hidden)), linear(net.out)

    def forward(self, t, x):
        h = torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], 1)
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.out(h)


class FeedForward(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.hidden, self.out = linear(layer.hidden), linear(layer.out)

    def forward(self, x):
        return self.out(F.gelu(self.hidden(x), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.heads, self.qkv, self.out = layer.heads, linear(layer.qkv), linear(layer.out)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.attention, self.feed_forward = Attention(block.attention), FeedForward(block.feed_forward)
        self.modulation = linear(block.modulation)

    def forward(self, x, c):
        s1, b1, g1, s2, b2, g2 = self.modulation(F.silu(c)).unsqueeze(-2).chunk(6, -1)
        x = x + g1 * self.attention((1 + s1) * norm(x) + b1)
        return x + g2 * self.feed_forward((1 + s2) * norm(x) + b2)


def norm(x):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    """Without a condition."""

    def __init__(self, net):
        super().__init__()
        self.shape, self.patch, self.time = net.shape, net.patch, Features(net.time)
        self.tokens, self.blocks = linear(net.tokens), nn.ModuleList(map(Block, net.blocks))
        self.positions = nn.Parameter(tensor(net.positions[...]))
        self.pixels, self.head = FeedForward(net.pixels), conv(net.head)

    def forward(self, t, x):
        (height, width, channels), p, n = self.shape, self.patch, len(x)
        rows, columns = height // p, width // p
        patches = x.reshape(n, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        h, c = self.tokens(patches) + self.positions, self.time(t)
        h, c = h, c.to(h.dtype)
        for block in self.blocks:
            h = block(h, c)
        h = self.pixels(norm(h)).reshape(n, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return self.head(h.reshape(n, -1, height, width))


class Convolved(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.norm, self.conv = group_norm(block.norm), conv(block.conv)

    def forward(self, x):
        return self.conv(self.norm(F.silu(x)))


class Adapter(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.hidden, self.out = linear(layer.hidden), linear(layer.out)

    def forward(self, features):
        return self.out(F.silu(self.hidden(features)))


class Residual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.second, self.time = Convolved(layer.first), Convolved(layer.second), Adapter(layer.time)

    def forward(self, x, time):
        return x + self.second(self.first(x) + self.time(time)[..., None, None])


class UNet(nn.Module):
    """Without a condition and without attention."""

    def __init__(self, net):
        super().__init__()
        self.time = Features(net.time)
        level = lambda layers: nn.ModuleList(map(Residual, layers))  # noqa: E731
        self.stem, self.stem_norm, self.head = conv(net.stem), group_norm(net.stem_norm), conv(net.head)
        self.down, self.up = nn.ModuleList(map(level, net.down)), nn.ModuleList(map(level, net.up))
        self.middle = level(net.middle)
        self.shrink = nn.ModuleList(conv(layer, 2) for layer in net.shrink)
        self.grow = nn.ModuleList(map(conv, net.grow))

    def forward(self, t, x):
        h, skips = F.silu(self.stem_norm(self.stem(x))), []
        time = self.time(t).to(h.dtype)
        for level, shrink in zip(self.down, self.shrink, strict=True):
            for layer in level:
                h = layer(h, time)
            skips.append(h)
            h = shrink(h)
        for layer in self.middle:
            h = layer(h, time)
        for level, grow, skip in reversed(list(zip(self.up, self.grow, skips, strict=True))):
            h = grow(F.interpolate(h, scale_factor=2, mode="bilinear")) + skip
            for layer in level:
                h = layer(h, time)
        return self.head(h)
