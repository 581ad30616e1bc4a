"""The same weights in torch libraries: flow_matching, torchdiffeq (the solver of torchcfm's examples) and torchsde.

Where these are not installed there are no rows. `make peers` makes an environment that has them beside jflow.
"""

import functools as ft
import os
import sys

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flax import nnx

import jflow as jf

from . import adaptive, fixed, likelihood, timed

IMAGE = (32, 32, 3)


def rows():
    try:
        import torch
        import torchdiffeq
        import torchsde
        from flow_matching.solver import ODESolver
    except ImportError as missing:
        print(f"no rows of peers: {missing.name} is not installed; make peers installs it", file=sys.stderr)
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_grad_enabled(False)
    yield from networks(torch, torchdiffeq, ODESolver)
    yield from densities(torch, ODESolver)
    yield from noise(torch, torchsde)
    yield pool(torch, torchdiffeq)


def filled(net):
    """The network with normals of the size of its own numbers where it has zeros: a head of zeros would be no test."""
    leaves, treedef = jax.tree.flatten(net)
    keys = jr.split(jr.key(7), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [leaf if jnp.any(leaf) else 0.05 * jr.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)],
    )


def networks(torch, torchdiffeq, ODESolver):
    """Euler steps with each of the networks."""
    from baselines import torch_nets

    mlp = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    dit = jf.nn.DiT(IMAGE, patch=4, dim=128, layers=4, heads=4, rngs=nnx.Rngs(0))
    unet = jf.nn.UNet(IMAGE, channels=(32, 64, 128), layers=2, rngs=nnx.Rngs(0))
    cases = (
        ("MLP 3 x 256, batch 4096", mlp, torch_nets.MLP, (4096, 2), 100, 0.8, False),
        ("DiT 4 x 128, 32 x 32 x 3, batch 16", dit, torch_nets.DiT, (16, *IMAGE), 10, 1.0, False),
        ("U-Net 32-64-128, 32 x 32 x 3, batch 16", unet, torch_nets.UNet, (16, *IMAGE), 10, 1.1, True),
    )
    for label, net, kind, shape, steps, bar, channels_last in cases:
        net = filled(net)
        x0, times = jr.normal(jr.key(0), shape), jf.UniformGrid(steps).times()
        given = torch.from_numpy(np.array(jnp.moveaxis(x0, -1, 1) if len(shape) == 4 else x0))
        theirs = kind(net).eval()
        if channels_last:
            theirs, given = (a.to(memory_format=torch.channels_last) for a in (theirs, given))

        @eqx.filter_jit
        def ours(net, x0, times):
            field = jf.Field(net, jf.CondOT(), predicts="velocity")
            return jax.vmap(lambda x: jf.decode(field, x, jf.FixedSteps(times)).x)(x0)

        ends, solver = torch.tensor([0.0, 1.0]), ODESolver(lambda x, t, net=theirs: net(t, x))
        peers = {
            "flow_matching": lambda: solver.sample(given, 1 / steps, time_grid=ends),  # noqa: B023
            "torchdiffeq": lambda: torchdiffeq.odeint(
                theirs, given, ends, method="euler", options={"step_size": 1 / steps}  # noqa: B023
            )[-1],
        }  # fmt: skip
        for name, peer in peers.items():
            end = peer().numpy()
            end = np.moveaxis(end, 1, -1) if len(shape) == 4 else end
            assert np.allclose(ours(net, x0, times), end, atol=2e-3), f"{name} ends elsewhere"
            beside = f"{name}, channels last" if channels_last else name
            program = f"Euler, {steps} steps, {label}"
            yield timed(program, beside, lambda: ours(net, x0, times), peer, bar)  # noqa: B023
        if channels_last:
            yield convolutions(torch, net, x0, f"the convolutions alone of {steps} calls, {label}", steps)


def convolutions(torch, net, x0, program, calls):
    """All convolutions of the calls of a network and nothing else, each on an array of its own."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(
                    (*(v.aval.shape for v in eqn.invars), (eqn.params["window_strides"], eqn.params["padding"]))
                )
            for inner in jax.core.jaxprs_in_params(eqn.params):
                walk(inner)

    walk(jax.make_jaxpr(jax.vmap(lambda x: net(jnp.array(0.5), x, None)))(x0).jaxpr)
    keys = jr.split(jr.key(3), (len(found), 2))
    pairs = [
        (jr.normal(a, image), jr.normal(b, kernel)) for (a, b), (image, kernel, _) in zip(keys, found, strict=True)
    ]

    @ft.partial(jax.jit, static_argnums=(2, 3))
    def one(x, w, strides, padding):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def ours():  # one after the other, as in the network
        return [one(x, w, *rest).block_until_ready() for (x, w), (*_, rest) in zip(pairs, found, strict=True)]

    given = [
        (
            torch.from_numpy(np.array(jnp.moveaxis(x, -1, 1))).to(memory_format=torch.channels_last),
            torch.from_numpy(np.array(jnp.transpose(w, (3, 2, 0, 1)))).to(memory_format=torch.channels_last),
        )
        for x, w in pairs
    ]

    def theirs():
        return [
            torch.nn.functional.conv2d(x, w, stride=strides, padding=[low for low, high in padding if low == high])
            for (x, w), (*_, (strides, padding)) in zip(given, found, strict=True)
        ]

    for x, y in zip(ours(), theirs(), strict=True):
        assert np.allclose(x, np.moveaxis(y.numpy(), 1, -1), atol=1e-2)
    return timed(
        program, "torch, channels last",
        lambda: [ours() for _ in range(calls)], lambda: [theirs() for _ in range(calls)],
    )  # fmt: skip


def densities(torch, ODESolver):
    """The log-density beside flow_matching's."""
    from baselines import torch_nets

    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    field, times = jf.Field(net, jf.CondOT(), predicts="velocity"), jf.UniformGrid(likelihood.STEPS).times()
    x, keys = jr.normal(jr.key(0), (likelihood.BATCH, 2)), jr.split(jr.key(1), likelihood.BATCH)
    theirs, given = torch_nets.MLP(net), torch.from_numpy(np.array(x))
    solver = ODESolver(lambda x, t: theirs(t, x))

    def log_p0(x):
        return -0.5 * (x**2).sum(1) - np.log(2 * np.pi)

    @eqx.filter_jit
    def ours(field, x, times, keys, divergence):
        return jax.vmap(
            lambda x, key: jf.log_prob(field, x, jf.FixedSteps(times), key=key, divergence=divergence).log_prob
        )(x, keys)

    for name, divergence, bar in (("exact", jf.ExactDivergence(), 0.67), ("Hutchinson's", jf.Hutchinson(), 0.95)):
        exact = name == "exact"

        def peer(exact=exact):
            return solver.compute_likelihood(given, log_p0, 1 / likelihood.STEPS, exact_divergence=exact)[1]

        if exact:
            assert np.allclose(ours(field, x, times, keys, divergence), peer().numpy(), atol=1e-3)
        program = f"{name} log-density, {likelihood.STEPS} Euler steps, MLP 3 x 256, d = 2, batch {likelihood.BATCH}"
        yield timed(
            program, "flow_matching",
            lambda: ours(field, x, times, keys, divergence), peer, bar,  # noqa: B023
        )  # fmt: skip


def noise(torch, torchsde):
    """Euler-Maruyama on an Ornstein-Uhlenbeck process."""

    class OU(torch.nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return torch.ones_like(y)

    for d, batch, steps in ((2, 4096, 200), (3072, 64, 100)):
        times, x0, keys = jf.UniformGrid(steps).times(), jnp.zeros((batch, d)), jr.split(jr.key(0), batch)

        start, ends = torch.zeros(batch, d), torch.linspace(0, 1, 2)
        program = f"Euler-Maruyama, {steps} steps, a key a sample, d = {d}, batch {batch}"
        yield timed(
            program, "torchsde", lambda: fixed.ornstein_uhlenbeck(keys, x0, times),  # noqa: B023
            lambda: torchsde.sdeint(OU(), start, ends, method="euler", dt=1 / steps),  # noqa: B023
        )  # fmt: skip


def pool(torch, torchdiffeq):
    """`generate` beside torchdiffeq's dopri5 on chunks, at the tolerance that reaches the same errors."""
    world, key = adaptive.costly(), jr.key(0)
    x0 = adaptive.starts(key)
    layers = [torch.from_numpy(np.array(layer)) for layer in world.net.layers]
    means, stds = torch.from_numpy(adaptive.MEANS), torch.from_numpy(adaptive.STDS)

    def velocity(t, x):
        """The exact velocity of the mixture along the linear path, plus zero times the network."""
        h = x
        for layer in layers[:-1]:
            h = torch.tanh(h @ layer)
        variance = t**2 * stds**2 + (1 - t) ** 2
        gap = x[:, None] - t * means
        weights = torch.softmax(-0.5 * (gap**2).sum(-1) / variance - torch.log(variance), -1)
        slope = (t * stds**2 - (1 - t)) / variance
        return (weights[..., None] * (means + slope[:, None] * gap)).sum(1) + 0 * (h @ layers[-1])

    def theirs(tolerance):
        chunks = torch.from_numpy(np.array(x0)).split(adaptive.LANES)
        ends = torch.tensor([0.0, 1.0])
        return torch.cat([torchdiffeq.odeint(velocity, x, ends, rtol=tolerance, atol=tolerance)[-1] for x in chunks])

    def ours():
        return jf.generate(world, key, adaptive.N, (2,), adaptive.SAMPLER, batch_size=adaptive.LANES, progress=False)

    fine = jf.AdaptiveSteps(dfx.Tsit5(), rtol=1e-6, atol=1e-6)
    exact = jf.generate(world, key, adaptive.N, (2,), fine, batch_size=adaptive.LANES, progress=False).x

    def errors(x):
        """The median and the 0.9 quantile of the samples' errors.

        Their root mean square says how many samples, one or two of 4,096, begin so near to the border of two modes that
        they end in the other one.
        """
        return np.quantile(np.abs(np.asarray(x) - np.asarray(exact)).max(1), (0.5, 0.9))

    goal = errors(ours().x)
    reached = [tolerance for tolerance in 10 ** -np.arange(2, 6.01, 0.25) if (errors(theirs(tolerance)) <= goal).all()]
    tolerance = float(reached[0])
    program = f"`generate`, {adaptive.N} samples in {adaptive.LANES} lanes, 1 MFLOP a call, median error {goal[0]:.1e}"
    return timed(program, f"torchdiffeq at {tolerance:.1e}", ours, lambda: theirs(tolerance), 0.6)
