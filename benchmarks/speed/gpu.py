"""On an accelerator: a DiT-B/2 and a U-Net of 30 M parameters in bfloat16, beside `torch.compile`."""

import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from flax import nnx

import jflow as jf

from . import timed


def rows(tiny: bool = False):
    """The rows; `tiny` takes networks that a CPU can try, whose figures mean nothing."""
    try:
        import torch
        from baselines import torch_nets
    except ImportError as missing:
        print(f"no rows of torch: {missing.name} is not installed", file=sys.stderr)
        torch = torch_nets = None
    batch, steps, half = (2, 2, jnp.float32) if tiny else (256, 20, jnp.bfloat16)
    dim, layers, heads, channels = (32, 1, 2, (8, 16)) if tiny else (768, 12, 12, (160, 320, 640))
    net = jf.nn.DiT((32, 32, 4), patch=2, dim=dim, layers=layers, heads=heads, dtype=half, rngs=nnx.Rngs(0))
    yield from rows_of("DiT-B/2", net, torch_nets and torch_nets.DiT, torch, batch, steps, 1.0, False)
    net = jf.nn.UNet((32, 32, 3), channels=channels, dtype=half, rngs=nnx.Rngs(0))
    yield from rows_of("U-Net", net, torch_nets and torch_nets.UNet, torch, batch, steps, 1.1, True)


def rows_of(name, net, kind, torch, batch, steps, bar, channels_last):
    """Sampling and training of one network. Without torch a row stands beside itself, which says the milliseconds."""
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))) / 1e6
    label = f"{name}, {millions:.0f} M parameters, {jnp.dtype(net.dtype).name}, batch {batch}"
    field, x = jf.Field(net, jf.CondOT(), predicts="velocity"), jr.normal(jr.key(0), (batch, *net.shape))

    @eqx.filter_jit
    def sample(field, x):
        return jax.vmap(lambda x: jf.decode(field, x, jf.UniformGrid(steps)).x)(x)

    state = jf.train.init(field, optax.adamw(1e-4))

    def loss(field, key, example):
        return jf.matching_loss(field, key, example)

    def train():
        nonlocal state
        state, info = jf.train.step(state, loss, jr.key(1), x)
        return info.loss

    ours = {f"Euler, {steps} steps": lambda: sample(field, x), "a step of training": train}
    theirs = ours.values() if torch is None else torch_programs(kind(net), torch, x, steps, channels_last)
    beside = "itself" if torch is None else "torch.compile"
    for (what, own), other in zip(ours.items(), theirs, strict=True):
        yield timed(f"{what}, {label}", beside, own, other, bar)


def torch_programs(net, torch, x, steps, channels_last):
    """The same by torch: sampling with weights in the type of compute, training by autocast."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_float32_matmul_precision("high")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    given = torch.from_numpy(jax.device_get(jnp.moveaxis(x, -1, 1)).copy()).to(device, memory_format=layout)
    net = net.to(device, memory_format=layout)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4, fused=device == "cuda")
    compiled = torch.compile(net) if device == "cuda" else net

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def sample():
        with torch.no_grad(), torch.autocast(device, half, enabled=half != torch.float32):
            y = given
            for i in range(steps):
                y = y + compiled(torch.tensor(i / steps, device=device), y).float() / steps
        wait()

    def error(x1):
        x0, t = torch.randn_like(x1), torch.rand(len(x1), device=device)[:, None, None, None]
        with torch.autocast(device, half, enabled=half != torch.float32):
            out = compiled(t.flatten(), t * x1 + (1 - t) * x0)
        return ((out.float() - (x1 - x0)) ** 2).mean()

    def train():
        with torch.enable_grad():
            optimiser.zero_grad(set_to_none=True)
            error(given).backward()
        optimiser.step()
        wait()

    return sample, train
