"""Calls of the public surface with one bad argument each, and what answers them.

A row of `CALLS` is one valid call: a public callable, its arguments by name, and what a user does with the result. Each
argument is replaced, one at a time, by values of other kinds. It runs without run-time type checking, as users do:
`python tests/bad_arguments.py [number of calls] [seed]` prints what was not answered in words.
"""

import collections
import dataclasses
import io
import linecache
import random
import signal
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from flax import nnx

import jflow as jf

PACKAGE = str(Path(jf.__file__).parent)
KEY, OUT = jr.key(0), Path(tempfile.mkdtemp())
X, XS = jnp.array([0.5, -1.0]), np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


class Net(eqx.Module):
    """A network that reads neither the time nor its condition."""

    weight: jax.Array

    def __call__(self, t, x, args):
        return jtu.tree_map(lambda leaf: self.weight * leaf, x)


class Map(eqx.Module):
    """A flow map's network."""

    def __call__(self, s, t, x, args):
        return -x


class Still(eqx.Module):
    """A function along time."""

    def __call__(self, t, x, args):
        return -x


def drift(t, x, args):
    return -x


PATH, GRID = jf.CondOT(), jf.UniformGrid(2)
FIELD = jf.Field(Net(jnp.asarray(-1.0)), PATH, "velocity")
SDE, FIXED = jf.FixedSteps(GRID, eta=1.0), jf.FixedSteps(GRID)
WORLD = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
GUIDED = jf.Guided(FIELD, null=0.0)
TREE = jf.brownian_tree(FIELD, SDE, KEY, (2,))
RNGS = nnx.Rngs(0)


def loss(field, key, example):
    return jf.matching_loss(field, key, example)


def state():
    return jf.train.init(FIELD, optax.sgd(0.1), ema=0.5)


def drawn(sampler):
    return jf.sample(FIELD, KEY, (2,), sampler)


def along(path):
    return path.alpha(0.3), path.sigma(0.3), jf.matching_loss(jf.Field(Net(jnp.ones(())), path, "data"), KEY, X)


def timed(grid):
    return grid.times(PATH), drawn(grid)


def seen(field):
    return field.velocity(0.4, X), field.data(0.4, X)


def guided(field):
    return field.data(0.4, X, jf.Args(1.0, scale=2.0))


def law(law):
    return law.quantile(0.3, PATH), law.log_density(0.4, PATH), jf.matching_loss(FIELD, KEY, X, law=law)


def weighed(weight):
    return weight(jnp.asarray(0.5)), jf.matching_loss(jf.Field(Net(jnp.ones(())), PATH, "data"), KEY, X, weight=weight)


def solver(solver):
    return drawn(jf.FixedSteps(jf.UniformGrid(4, 0.1, 0.9), solver))


def diverging(divergence):
    return divergence(lambda x: x**2, X, divergence.probes(KEY, X))


def world(world):
    return world.sample(KEY), world.field(PATH).data(0.4, jnp.zeros(world.shape))


def process(process):
    return process.drift(0.1, X, None), jf.solve(process.drift, X, GRID)


def network(net):
    return net(0.5, jnp.zeros(net.shape or (net.in_size,)), 1 if net.null is not None else None)


def same(result):
    return result


@dataclasses.dataclass(frozen=True)
class Call:
    """A valid call; `free` names the arguments that may be anything at all."""

    function: Callable[..., Any]
    given: dict[str, Any]
    use: Callable[..., Any] = same
    free: str = ""


C = Call
VERB = {"saveat": None, "dtype": None, "args": None}
SHIFTED = {"shift": None, "grid": None}
NET = {"num_classes": 3, "condition_size": None, "null": None, "dtype": None, "rngs": RNGS}
CALLS = {
    "sample": C(
        jf.sample,
        {
            "field": FIELD, "key": KEY, "shape": (2,), "sampler": GRID, "start": None, "brownian": None,
            "log_prob": False, "divergence": None, **VERB,
        },
        free="args",
    ),
    "sample, with a density": C(
        jf.sample,
        {
            "field": FIELD, "key": KEY, "shape": (2,), "sampler": GRID, "start": WORLD, "log_prob": True,
            "divergence": jf.Hutchinson(2),
        },
    ),
    "sample, with noise": C(
        jf.sample, {"field": FIELD, "key": KEY, "shape": (2,), "sampler": SDE, "brownian": TREE}
    ),
    "sample, guided": C(
        jf.sample,
        {"field": GUIDED, "key": KEY, "shape": (2,), "sampler": GRID, "args": jf.Args(1.0, scale=2.0)},
        free="args",
    ),
    "decode": C(
        jf.decode,
        {
            "field": FIELD, "x": X, "sampler": GRID, "key": None, "brownian": None, "event": None, "log_prob": False,
            "divergence": None, **VERB,
        },
        free="args",
    ),
    "encode": C(jf.encode, {"field": FIELD, "x": X, "sampler": GRID, **VERB}, free="args"),
    "log_prob": C(
        jf.log_prob,
        {"field": FIELD, "x": X, "sampler": GRID, "key": KEY, "start": None, "divergence": None, **VERB},
        free="args",
    ),
    "solve": C(
        jf.solve,
        {"drift": Still(), "x0": X, "sampler": GRID, "diffusion": None, "key": None, "brownian": None, "event": None,
         **VERB},
        free="args",
    ),
    "solve, with noise": C(
        jf.solve, {"drift": Still(), "x0": X, "sampler": GRID, "diffusion": Still(), "key": KEY, "brownian": None}
    ),
    "generate": C(
        jf.generate,
        {
            "field": FIELD, "key": KEY, "n": 3, "shape": (2,), "sampler": GRID, "args_in_axes": None, "batch_size": 2,
            "mesh": None, "progress": False, **VERB,
        },
        free="args",
    ),
    "batched": C(
        lambda fn, mapped, batch_size, mesh, progress: jf.batched(
            fn, mapped, batch_size=batch_size, mesh=mesh, progress=progress
        ),
        {"fn": jnp.sum, "mapped": XS, "batch_size": 3, "mesh": None, "progress": False},
    ),
    "matching_loss": C(
        jf.matching_loss,
        {
            "field": FIELD, "key": KEY, "x1": X, "args": None, "x0": None, "t": 0.3, "law": None, "weight": None,
            "mask": None,
        },
        free="args",
    ),
    "stepper": C(jf.stepper, {"field": FIELD, "sampler": FIXED, "dtype": None, "brownian": None}, lambda s: s.times),
    "recommended": C(jf.recommended, {"field": FIELD, "nfe": 8, "args": None}, drawn, free="args"),
    "brownian_tree": C(
        jf.brownian_tree,
        {
            "field": FIELD, "sampler": SDE, "key": KEY, "shape": (2,), "resolution": 2**-8,
            "levy_area": dfx.BrownianIncrement,
        },
        lambda tree: jf.sample(FIELD, KEY, (2,), SDE, brownian=tree),
    ),
    "dyadic_noise": C(jf.dyadic_noise, {"key": KEY, "n": 4, "shape": (2,)}),
    "bits_per_dim": C(jf.bits_per_dim, {"log_prob": 1.0, "dimension": 3, "bins": 16, "low": -1.0, "high": 1.0}),
    "dequantize": C(jf.dequantize, {"key": KEY, "levels": jnp.arange(3), "bins": 16, "low": -1.0, "high": 1.0}),
    "drop_condition": C(jf.drop_condition, {"key": KEY, "condition": 3, "null": 10, "rate": 0.5}),
    "convert": C(
        jf.convert,
        {"path": PATH, "t": 0.4, "x": X, "value": X, "source": "velocity", "target": "data", "args": None},
        free="args",
    ),
    "given": C(
        jf.given,
        {"path": PATH, "t": 0.4, "x": X, "values": (X,), "predicts": ("velocity",), "targets": ("data",), "args": None},
        free="args",
    ),
    "evaluation_nodes": C(jf.evaluation_nodes, {"solver": dfx.Heun(), "noisy": False}),
    "to_json": C(jf.to_json, {"obj": FIXED}),
    "from_json": C(jf.from_json, {"text": jf.to_json(FIXED)}),
    "change_path": C(jf.change_path, {"field": FIELD, "path": jf.VP()}, seen),
    # nouns
    "Field": C(jf.Field, {"net": Net(jnp.ones(())), "path": PATH, "predicts": "velocity", "draws": False}, seen),
    "Preconditioned": C(
        jf.Preconditioned, {"net": Net(jnp.ones(())), "path": jf.VE(), "sigma_data": 0.5, "c_noise": None}, seen
    ),
    "FlowMap": C(jf.FlowMap, {"net": Map(), "path": PATH}, lambda f: f.jump(0.0, 0.5, X)),
    "Jump": C(
        jf.Jump,
        {"renoise": 0.5},
        lambda jump: jf.sample(jf.FlowMap(Map(), PATH), KEY, (2,), jf.FixedSteps(GRID, jump)),
    ),
    "Guided": C(
        jf.Guided, {"field": FIELD, "null": 0.0, "weak": None, "rule": None, "interval": (0.1, 0.9)}, guided,
        free="null"
    ),
    "Guided, weak": C(jf.Guided, {"field": FIELD, "weak": FIELD, "rule": jf.APG()}, guided),
    "ClassifierGuided": C(
        jf.ClassifierGuided, {"field": FIELD, "log_prob": lambda t, x, y: jnp.sum(x), "scale": "scale"}, guided
    ),
    "Thresholded": C(jf.Thresholded, {"field": FIELD, "percentile": 99.0, "limit": 1.0}, seen),
    "APG": C(jf.APG, {"parallel": 0.5, "norm_threshold": 1.0}, lambda rule: guided(jf.Guided(FIELD, 0.0, rule=rule))),
    "CFGZero": C(jf.CFGZero, {"zero_before": 0.1}, lambda rule: guided(jf.Guided(FIELD, 0.0, rule=rule))),
    "Rescaled": C(
        jf.Rescaled, {"phi": 0.5, "rule": None}, lambda rule: guided(jf.Guided(FIELD, 0.0, rule=rule))
    ),
    "CondOT": C(jf.CondOT, {"source": jf.Normal()}, along),
    "VP": C(jf.VP, {"beta_min": 0.1, "beta_max": 20.0, "source": None}, along),
    "VE": C(jf.VE, {"sigma_min": 0.01, "sigma_max": 50.0, "source": None}, along),
    "CustomPath": C(
        jf.CustomPath, {"alpha": lambda t: t, "sigma": lambda t: 1 - t, "source": None}, along
    ),
    "Normal": C(jf.Normal, {"map": None, "coupled": False}, lambda s: s.sample(KEY, X)),
    "Coloured": C(jf.Coloured, {"covariance": jnp.eye(2)}, lambda m: jf.Normal(m).sample(KEY, X)),
    "Recorded": C(jf.Recorded, {"normals": jnp.zeros((2, 2))}, lambda n: jf.sample(FIELD, KEY, (2,), SDE, brownian=n)),
    "FixedSteps": C(
        jf.FixedSteps,
        {"times": GRID, "solver": None, "clock": None, "eta": None, "diffusion": None, "end": None},
        drawn,
    ),
    "FixedSteps, with noise": C(
        jf.FixedSteps, {"times": jnp.array([0.1, 0.5, 0.9]), "clock": jf.ThetaClock(), "eta": 0.5, "end": "stop"}, drawn
    ),
    "AdaptiveSteps": C(
        jf.AdaptiveSteps,
        {
            "solver": None, "controller": None, "t0": 0.0, "t1": 0.9, "clock": None, "eta": None, "diffusion": None,
            "dt0": None, "max_steps": 50, "adjoint": None, "rtol": 1e-2, "atol": 1e-2,
        },
        drawn,
    ),
    "ODEFlow": C(jf.ODEFlow, {"velocity": Still(), "t0": 0.0, "t1": 0.5, "args": None, "sampler": None},
    lambda f: f(X), free="args"),
    "UniformGrid": C(jf.UniformGrid, {"n": 2, "t0": 0.1, "t1": 0.9}, timed),
    "KarrasGrid": C(jf.KarrasGrid, {"n": 2, "sigma_min": 0.1, "sigma_max": 5.0, "rho": 7.0}, timed),
    "LogSNRGrid": C(jf.LogSNRGrid, {"n": 2, "lo": -3.0, "hi": 3.0, "rho": 1.0}, timed),
    "RatioGrid": C(jf.RatioGrid, {"n": 2}, timed),
    "CosineGrid": C(jf.CosineGrid, {"n": 2}, timed),
    "EasedGrid": C(jf.EasedGrid, {"n": 2, "first": 1.2, "last": 1.3}, timed),
    "ShiftedGrid": C(jf.ShiftedGrid, {"rule": GRID, "factor": 2.0}, timed),
    "Ancestral": C(
        jf.Ancestral, {"eta": 0.5}, lambda rule: drawn(jf.FixedSteps(GRID, clock=jf.ThetaClock(), eta=rule))
    ),
    "Adams": C(jf.Adams, {"order": 2, "corrector": False}, solver),
    "DEIS": C(jf.DEIS, {"order": 2}, solver),
    "DPMpp": C(jf.DPMpp, {"order": 2, "variant": "exact"}, solver),
    "DPMppSinglestep": C(jf.DPMppSinglestep, {"order": 2}, solver),
    "UniPC": C(jf.UniPC, {"order": 2, "variant": "bh2"}, solver),
    "SASolver": C(jf.SASolver, {"predictor": 2, "corrector": 2}, solver),
    "CFGpp": C(
        jf.CFGpp,
        {"scale": "scale"},
        lambda s: jf.sample(GUIDED, KEY, (2,), jf.FixedSteps(GRID, s), args=jf.Args(1.0, scale=2.0)),
    ),
    "EDMChurn": C(
        jf.EDMChurn,
        {"s_churn": 1.0, "s_min": 0.0, "s_max": 10.0, "s_noise": 1.0, "steps": None},
        lambda s: drawn(jf.FixedSteps(jf.LogSNRGrid(2, -3.0, 3.0), s)),
    ),
    "NonStationary": C(jf.NonStationary, {"weights": jnp.eye(4)}, solver),
    "ExactDivergence": C(jf.ExactDivergence, {"chunk": 2}, diverging),
    "Hutchinson": C(jf.Hutchinson, {"probes": 2, "law": "rademacher"}, diverging),
    "HutchPlusPlus": C(jf.HutchPlusPlus, {"sketch": 1, "probes": 1}, diverging),
    "edm_weight": C(jf.edm_weight, {"sigma_data": 0.5}, weighed),
    "min_snr_weight": C(jf.min_snr_weight, {"gamma": 5.0, "predicts": "data"}, weighed),
    "soft_min_snr_weight": C(jf.soft_min_snr_weight, {"gamma": 5.0, "predicts": "data"}, weighed),
    "sigmoid_weight": C(jf.sigmoid_weight, {"bias": 0.0, "predicts": "data"}, weighed),
    "likelihood_weight": C(jf.likelihood_weight, {"predicts": "data"}, weighed),
    # methods of nouns
    "Field.velocity": C(FIELD.velocity, {"t": 0.4, "x": X}),
    "AbstractPath.interpolate": C(PATH.interpolate, {"t": 0.4, "x0": X, "x1": X}),
    "UniformGrid.times": C(jf.KarrasGrid(2, 0.1, 5.0).times, {"path": PATH}),
    # wings
    "laws.Uniform": C(jf.laws.Uniform, {"lo": 0.1, "hi": 0.9}, law),
    "laws.LogitNormal": C(jf.laws.LogitNormal, {"mean": 0.0, "std": 1.0}, law),
    "laws.LogNormalSigma": C(jf.laws.LogNormalSigma, {"mean": 0.0, "std": 1.0}, law),
    "laws.UniformLogSNR": C(jf.laws.UniformLogSNR, {"lo": -5.0, "hi": 5.0}, law),
    "laws.Beta": C(jf.laws.Beta, {"a": 1.0, "b": 1.5, "lo": 0.1, "hi": 0.9}, law),
    "laws.stratified_times": C(jf.laws.stratified_times, {"key": KEY, "n": 3, "law": None, "path": PATH}),
    "distributions.Gaussian": C(jf.distributions.Gaussian, {"mean": jnp.zeros(2), "std": 0.5, "cov": None}, world),
    "distributions.GaussianMixture": C(
        jf.distributions.GaussianMixture,
        {"means": jnp.zeros((2, 2)), "stds": jnp.ones(2), "covs": None, "weights": jnp.ones(2)},
        world,
    ),
    "distributions.PointSet": C(jf.distributions.PointSet, {"points": XS}, world),
    "distributions.Boxes": C(
        jf.distributions.Boxes, {"lows": jnp.zeros((1, 2)), "highs": jnp.ones((1, 2)), "weights": None}, world
    ),
    "distributions.LabelledMixture": C(
        jf.distributions.LabelledMixture,
        {"mixture": jf.distributions.GaussianMixture(jnp.zeros((2, 2)), stds=jnp.ones(2)), "labels": np.arange(2)},
        world,
    ),
    "distributions.HierarchicalGaussian": C(
        jf.distributions.HierarchicalGaussian, {"std": 0.5, "shape": (2,)}, lambda w: w.sample(KEY)
    ),
    "distributions.ExactField": C(
        jf.distributions.ExactField, {"distribution": WORLD, "path": PATH, "predicts": "velocity"}, seen
    ),
    "distributions.checkerboard": C(jf.distributions.checkerboard, {"cells": 2, "half_width": 1.0}, world),
    "distributions.moons": C(jf.distributions.moons, {"noise": 0.05, "scale": 1.0, "components": 4}, world),
    "distributions.circles": C(
        jf.distributions.circles, {"factor": 0.5, "noise": 0.05, "scale": 1.0, "components": 4}, world
    ),
    "distributions.spirals": C(
        jf.distributions.spirals, {"turns": 1.0, "noise": 0.05, "scale": 1.0, "components": 4}, world
    ),
    "distributions.Gaussian.log_prob": C(WORLD.log_prob, {"x": X}),
    "processes.BrownianMotion": C(jf.processes.BrownianMotion, {"sigma": 1.0}, process),
    "processes.OrnsteinUhlenbeck": C(jf.processes.OrnsteinUhlenbeck, {"theta": 1.0, "sigma": 1.0}, process),
    "processes.GeometricBrownianMotion": C(jf.processes.GeometricBrownianMotion, {"mu": 0.1, "sigma": 1.0}, process),
    "processes.LinearField": C(jf.processes.LinearField, {"theta": 1.0}, process),
    "processes.Langevin": C(jf.processes.Langevin, {"log_density": WORLD.log_prob, "sigma": 1.0}, process),
    "train.init": C(
        jf.train.init,
        {"field": FIELD, "optimizer": optax.sgd(0.1), "ema": 0.9, "trained": None},
        lambda s: jf.train.step(s, loss, KEY, XS)[1],
    ),
    "train.step": C(
        lambda loss, key, batch, mesh, microbatch, state=None: jf.train.step(
            globals()["state"]() if state is None else state, loss, key, batch, mesh=mesh, microbatch=microbatch
        ),
        {"loss": loss, "key": KEY, "batch": XS, "mesh": None, "microbatch": 3},
        lambda out: out[1],
    ),
    "train.step, state": C(
        jf.train.step, {"state": None, "loss": loss, "key": KEY, "batch": XS}, lambda out: out[1]
    ),
    "train.fit": C(
        lambda **given: jf.train.fit(state(), **given),
        {
            "loss": loss, "batches": lambda i: XS, "steps": 2, "key": KEY, "run_dir": None, "save_every": 1,
            "log_every": 1, "keep": 1, "mesh": None, "couple": None, "microbatch": None, "steps_per_call": 1,
            "every": (1, lambda state, line: None), "best": None, "max_skips": 0, "progress": False,
        },
        lambda out: out[1],
    ),
    "train.couple": C(
        jf.train.couple, {"key": KEY, "x0": XS, "x1": XS[::-1], "plan": jf.train.Sinkhorn(0.5), "labels": None}
    ),
    "train.Sinkhorn": C(
        jf.train.Sinkhorn, {"epsilon": 0.5, "penalty": None, "tolerance": 0.1, "max_iterations": 9},
        lambda plan: jf.train.couple(KEY, XS, XS, plan, labels=None if plan.penalty is None else (XS, XS)),
    ),
    "train.Coupling": C(
        jf.train.Coupling, {"plan": jf.train.Assignment(), "data": "x", "label": "label"},
        lambda couple: couple(KEY, {"x": XS}), free="label",
    ),
    "train.save": C(
        lambda **given: jf.train.save(**given),
        {"folder": None, "state": state(), "key": None, "keep": 2},
    ),
    "train.restore": C(
        lambda **given: jf.train.restore(**given), {"folder": OUT / "saved", "state": state(), "step": None,
        "key": None}
    ),
    "train.warm_start": C(
        jf.train.warm_start,
        {"folder": OUT / "saved", "field": FIELD, "average": True, "step": None},
        lambda out: out[0],
    ),
    "train.PowerEMA": C(jf.train.PowerEMA, {"width": 0.1}, lambda rule: rule.gamma),
    "train.posthoc": C(jf.train.posthoc, {"run_dir": OUT / "run", "width": 0.1, "net": FIELD}),
    "train.mean_loss": C(jf.train.mean_loss, {"field": FIELD, "loss": loss, "key": KEY, "batch": XS}),
    "data.from_array": C(
        jf.data.from_array, {"x": XS, "label": np.arange(6), "name": "a", "num_classes": 6}, lambda d: d.x, free="name"
    ),
    "data.Dataset": C(
        jf.data.Dataset, {"x": XS, "label": np.arange(6), "name": "a", "num_classes": 6}, lambda d: d.x, free="name"
    ),
    "data.from_npz": C(jf.data.from_npz, {"path": OUT / "x.npz"}),
    "data.batch": C(jf.data.batch, {"dataset": jf.data.from_array(XS), "seed": 0, "step": 1, "batch_size": 2}),
    "data.loader": C(
        jf.data.loader, {"source": jf.data.from_array(XS), "batch_size": 2, "seed": 0}, lambda it: next(iter(it))
    ),
    "data.flip": C(jf.data.flip, {"key": KEY, "x": jnp.zeros((2, 2, 1))}),
    "data.crop": C(jf.data.crop, {"key": KEY, "x": jnp.zeros((2, 2, 1)), "margin": 1}),
    "data.digits": C(jf.data.digits, {"split": "test", "seed": 0}, lambda d: d.x),
    "data.moons": C(jf.data.moons, {"key": KEY, "n": 4, "noise": 0.05, "scale": 5.0}),
    "data.circles": C(jf.data.circles, {"key": KEY, "n": 4, "factor": 0.5, "noise": 0.05, "scale": 5.0}),
    "data.spirals": C(jf.data.spirals, {"key": KEY, "n": 4, "turns": 1.5, "noise": 0.02, "scale": 5.0}),
    "data.checkerboard": C(jf.data.checkerboard, {"key": KEY, "n": 4, "cells": 4, "half_width": 5.0}),
    "data.eight_gaussians": C(jf.data.eight_gaussians, {"key": KEY, "n": 4, "radius": 5.0, "std": 0.5}),
    "metrics.energy_distance": C(jf.metrics.energy_distance, {"x": XS, "y": XS}),
    "metrics.mmd": C(jf.metrics.mmd, {"x": XS, "y": XS, "bandwidth": 1.0}),
    "metrics.wasserstein_1d": C(jf.metrics.wasserstein_1d, {"x": XS[:, 0], "y": XS[:, 0], "p": 2}),
    "metrics.sliced_wasserstein": C(
        jf.metrics.sliced_wasserstein, {"key": KEY, "x": XS, "y": XS, "num_projections": 4, "p": 2}
    ),
    "metrics.frechet_distance": C(jf.metrics.frechet_distance, {"x": XS, "y": XS, "features": None}),
    "metrics.kid": C(jf.metrics.kid, {"x": XS, "y": XS, "features": None}),
    "metrics.precision_recall": C(jf.metrics.precision_recall, {"x": XS, "reference": XS, "k": 2, "features": None}),
    "metrics.nearest_distance": C(jf.metrics.nearest_distance, {"x": XS, "reference": XS}),
    "metrics.class_accuracy": C(
        jf.metrics.class_accuracy, {"x": XS, "label": np.arange(6), "classifier": lambda x: np.arange(6)}
    ),
    "metrics.transport_cost": C(jf.metrics.transport_cost, {"x0": XS, "x1": XS}),
    "metrics.straightness": C(jf.metrics.straightness, {"xs": np.zeros((2, 3, 2)), "ts": np.arange(3.0)}),
    "metrics.c2st": C(jf.metrics.c2st, {"key": KEY, "x": XS, "y": XS, "folds": 2}),
    "testing.check_path": C(jf.testing.check_path, {"path": PATH}),
    "testing.check_field": C(
        jf.testing.check_field,
        {
            "field": WORLD.field(PATH), "distribution": WORLD, "args": None, "times": (0.5,), "n": 2, "tolerance": 0.01,
            "key": None,
        },
        free="args",
    ),
    "samplers.by_name": C(jf.samplers.by_name, {"name": "ddim", "n": 2}, drawn),
    "samplers.ddim": C(jf.samplers.ddim, {"n": 2, "eta": 0.5, **SHIFTED}, drawn),
    "samplers.ddpm": C(jf.samplers.ddpm, {"n": 2, **SHIFTED}, drawn),
    "samplers.dpmpp_2m_sde": C(jf.samplers.dpmpp_2m_sde, {"n": 2, "eta": 1.0, **SHIFTED}, drawn),
    "samplers.euler_ancestral": C(jf.samplers.euler_ancestral, {"n": 2, "eta": 1.0, **SHIFTED}, drawn),
    "samplers.flow_euler": C(jf.samplers.flow_euler, {"n": 2, **SHIFTED}, drawn),
    "samplers.unipc": C(jf.samplers.unipc, {"n": 2, "order": 2, "variant": "bh2", **SHIFTED}, drawn),
    "samplers.heun_edm": C(jf.samplers.heun_edm, {"n": 2, "sigma_min": 0.1, "sigma_max": 5.0, "rho": 7.0}, drawn),
    "nn.MLP": C(jf.nn.MLP, {"in_size": 2, "width": 4, "depth": 1, "embedding": 2, **NET}, network),
    "nn.UNet": C(
        jf.nn.UNet,
        {
            "shape": (2, 2, 1), "channels": (4,), "layers": 1, "embedding": 4, "attention": (), "heads": 1, **NET,
        },
        lambda net: net.shape,
    ),
    "nn.DiT": C(
        jf.nn.DiT, {"shape": (4, 4, 1), "patch": 2, "dim": 4, "layers": 1, "heads": 1, "token_size": None, **NET},
        lambda net: net.shape,
    ),
    "nn.Bounded": C(
        jf.nn.Bounded, {"net": Still(), "low": -1.0, "high": 1.0}, lambda net: seen(jf.Field(net, PATH, "velocity"))
    ),
    "nn.Reversed": C(
        jf.nn.Reversed, {"net": Still(), "predicts": "velocity"}, lambda net: seen(jf.Field(net, PATH, "velocity"))
    ),
    "nn.patchify": C(jf.nn.patchify, {"x": jnp.zeros((4, 4, 1)), "patch": 2}),
    "nn.fourier_features": C(jf.nn.fourier_features, {"t": 0.5, "frequencies": jnp.ones(2)}),
    "plot.image_grid": C(
        jf.plot.image_grid, {"images": np.zeros((2, 3, 3, 1)), "labels": None, "ncols": 2, "title": None, "ax": None},
        free="title",
    ),
    "plot.trajectories": C(
        jf.plot.trajectories, {"xs": np.zeros((2, 3)), "ts": np.arange(3.0), "title": None, "ax": None}, free="title"
    ),
    "plot.loss_curve": C(
        jf.plot.loss_curve, {"steps": np.arange(3), "losses": np.ones(3), "smooth": 0.9, "title": None}, free="title"
    ),
    "plot.density": C(
        jf.plot.density,
        {"log_density": WORLD.log_prob, "particles": None, "extent": (-1.0, 1.0, -1.0, 1.0), "resolution": 4},
    ),
    "search.optimize_times": C(
        jf.search.optimize_times,
        {
            "field": FIELD, "key": KEY, "n": 2, "shape": (2,), "args": None, "args_in_axes": None, "solver": None,
            "clock": None, "end": None, "t0": 0.0, "t1": 1.0, "start": None, "dtype": None, "num": 2, "iterations": 1,
            "progress": False,
        },
        free="args",
    ),
    "search.best_sampler": C(
        jf.search.best_sampler,
        {
            "field": FIELD, "key": KEY, "nfe": 2, "shape": (2,), "candidates": {"euler": lambda n: jf.UniformGrid(n)},
            "fit": 0, "num": 2, "iterations": 1, "progress": False,
        },
    ),
}  # fmt: skip
np.savez(OUT / "x.npz", x=XS)
jf.train.save(OUT / "saved", state())
jf.train.fit(
    jf.train.init(FIELD, optax.sgd(0.1), ema=jf.train.PowerEMA(0.1)), loss, lambda i: XS, steps=2, key=KEY,
    run_dir=OUT / "run", progress=False,
)  # fmt: skip

BAD = {
    "None": None, "text": "text", "empty text": "", "bytes": b"x", "nan": float("nan"), "inf": float("inf"),
    "minus inf": -float("inf"), "minus one": -1, "zero": 0, "0.0": 0.0, "-0.5": -0.5, "2.5": 2.5, "1e30": 1e30,
    "True": True, "complex": 1 + 2j, "function": lambda *_: 0.0, "class": jf.CondOT, "type": float, "object": object(),
    "module": jnp, "dict": {}, "dict of text": {"a": "b"}, "list": [], "tuple": (), "list of text": ["a"],
    "ragged": [[1, 2], [3]], "set": {1.0}, "array (2, 3, 4)": np.zeros((2, 3, 4), np.float32),
    "array (3,)": jnp.array([0.1, 0.2, 0.4]), "array (2,)": jnp.array([0.2, 0.7]), "no rows": jnp.zeros((0,)),
    "nan array": jnp.full(2, jnp.nan), "integers": jnp.arange(3), "booleans": np.array([True, False]),
    "text array": np.array(["a", "b"]), "object array": np.array([None, 1.0]), "complex array": jnp.array([1j, 0.0]),
    "half": jnp.array([0.2, 0.7], jnp.float16), "number array": jnp.asarray(0.5), "nan number": np.float32("nan"),
    "key": jr.key(1), "keys": jr.split(jr.key(1), 2), "old key": np.asarray(jr.PRNGKey(0)), "seed": 7,
    "rbg key": jr.key(0, impl="rbg"), "path": jf.VP(), "field": FIELD, "grid": jf.UniformGrid(3),
    "clock": jf.RatioClock(),
    "sampler": jf.AdaptiveSteps(), "solver": dfx.Heun(), "source": jf.Normal(), "law": jf.laws.Uniform(),
    "args": jf.Args(1.0), "network": Net(jnp.ones(())), "shapes": jax.ShapeDtypeStruct((2,), jnp.float32),
    "steps": jf.FixedSteps(jf.UniformGrid(3)), "world": WORLD, "iterator": iter([1]), "date": types.SimpleNamespace(),
}  # fmt: skip
TRACED = "traced"


class Slow(Exception):
    """A call that took too long."""


def _late(*_):
    raise Slow


def answer(call: Call, name: str, kind: str) -> tuple[str, str]:
    """The outcome of a call with one argument replaced: `words`, `fine`, `raw` or `nan`, and what was said."""
    if kind == TRACED:
        box: list[Any] = []
        value: Any = None
    else:
        value = BAD[kind]

    def run(value):
        given = {**call.given, name: value}
        return call.use(call.function(**given))

    def traced(value):
        box.append(run(value))
        return 0

    signal.signal(signal.SIGALRM, _late)
    signal.alarm(60)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == TRACED:
                jax.jit(traced)(0.5)
                return "fine", "traced"
            result = run(value)
    except Slow:
        return "raw", "more than a minute"
    except BaseException as error:
        return judged(error)
    finally:
        signal.alarm(0)
    return finite(result, "nan" in kind or "inf" in kind)


def judged(error: BaseException) -> tuple[str, str]:
    """Whether an exception is raised by a statement of jflow's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    at = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    file, line = (
        trace.tb_frame.f_code.co_filename,
        linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno),
    )
    own = file.startswith(PACKAGE) and line.strip().startswith("raise")
    said = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(file).name}:{trace.tb_lineno}"
    said += f" under {Path(at[-1].filename).name}:{at[-1].lineno}" if at and not own else ""
    kinds = (ValueError, TypeError, OSError, NotImplementedError)
    return ("words" if own and isinstance(error, kinds) and "must" in str(error) else "own" if own else "raw"), said


def finite(result: Any, given: bool = False) -> tuple[str, str]:
    """Whether a result holds a NaN that no status tells of; arithmetic alone hands on one that was `given`."""
    arrays = [leaf for leaf in jtu.tree_leaves(result) if isinstance(leaf, (jax.Array, np.ndarray, float, np.generic))]
    arrays = [leaf for leaf in map(np.asarray, filter(_is_not_key, arrays)) if leaf.dtype.kind in "fc"]
    wrong = any(bool(np.isnan(leaf).any()) for leaf in arrays)
    status = [
        s.status for s in jtu.tree_leaves(result, is_leaf=_is_solution) if _is_solution(s) and s.status is not None
    ]
    told = any(bool((np.asarray(s) != 0).any()) for s in status)
    return ("nan", "a NaN") if wrong and not told and (status or not given) else ("fine", "")


def _is_not_key(leaf):
    return not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _is_solution(node):
    return isinstance(node, jf.Solution)


def every() -> list[tuple[str, str, str]]:
    """All calls with one bad argument: of a name, an argument, a kind of value."""
    return [
        (name, argument, kind)
        for name, call in CALLS.items()
        for argument in call.given
        if argument not in call.free.split()
        for kind in (*BAD, TRACED)
    ]


def draw(n: int | None, seed: int) -> list[tuple[str, str, str]]:
    calls = every()
    return calls if n is None or n >= len(calls) else random.Random(seed).sample(calls, n)


def main() -> None:
    n = None if sys.argv[1] == "all" else int(sys.argv[1])
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    tally: Any = collections.Counter()
    for name, argument, kind in draw(n, int(sys.argv[2])):
        if not name.startswith(only):
            continue
        call = CALLS[name]
        if name == "train.step, state":
            call = dataclasses.replace(call, given={**call.given, "state": state()})
        if name == "train.save":
            call = dataclasses.replace(call, given={**call.given, "folder": tempfile.mkdtemp()})
        outcome, said = answer(call, argument, kind)
        tally[outcome] += 1
        print(f"{outcome}\t{name}\t{argument}\t{kind}\t{said}", flush=True)
    print(dict(tally), file=sys.stderr)


if __name__ == "__main__":
    main()
