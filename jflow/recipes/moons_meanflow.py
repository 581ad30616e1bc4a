"""A few-step model of two moons in the plane: the smallest flow map."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf

from ._folder import ANIMATION, SAMPLES, TRAJECTORIES, whole_file
from ._recipe import AbstractMapRecipe, Bar, check_memory, check_options, jumps

_draw_data = jax.jit(jf.data.moons, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class MoonsMeanflow(AbstractMapRecipe):
    """A flow map on two half circles in the plane, without classes: one or two network calls a draw."""

    steps: int = 15000
    """Steps of the optimiser."""
    batch_size: int = 1024
    """Points a step, fresh at each."""
    learning_rate: float = 2e-3
    """The highest; it falls to zero along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters."""
    diagonal: float = 0.5
    """Share of examples with s = t, where the map learns its velocity."""
    width: int = 96
    """Width of the hidden layers."""
    depth: int = 4
    """Number of hidden layers."""
    seed: int = 0
    """Seed of the parameters, the data and the noise."""

    shape: ClassVar = (2,)
    num_classes: ClassVar = None
    draws: ClassVar = 2000
    minutes: ClassVar = "2"

    def __post_init__(self):
        check_options(self)
        check_memory("So many layers of this width", self.depth * self.width**2)

    def init(self):
        net = jf.nn.MLP(2, width=self.width, depth=self.depth, times=2, rngs=nnx.Rngs(self.seed))
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return jf.train.init(jf.FlowMap(net, jf.CondOT()), optax.adam(schedule), ema=self.ema)

    def loss(self, field, key, example):
        law = jf.few_step.TimePairs(jf.laws.Uniform(), diagonal=self.diagonal)
        return jf.few_step.flow_map_loss(field, key, example["x"], law=law)

    def batch(self, step):
        _, key = jr.split(jr.key(self.seed))  # the first half is for the noise of training
        return {"x": _draw_data(jr.fold_in(key, step), self.batch_size)}

    def evaluate(self, field, sampler, num, seed):
        """Distances to fresh data of one jump, and of the sampler, in units of the data's own."""
        key = jr.key(seed)
        fresh = [np.asarray(_draw_data(key, num)) for key in jr.split(key, 6)]
        bars = []
        for name, way in (("one call", jumps(1)), ("the sampler", sampler)):
            x = self.draw(field, way, num, seed=seed)
            energy = [jf.metrics.energy_distance(y, fresh[0]) for y in (x, *fresh[1:])]
            sliced = [jf.metrics.sliced_wasserstein(key, y, fresh[0]) for y in (x, *fresh[1:])]
            for what, values in (("energy distance", energy), ("sliced Wasserstein", sliced)):
                ratio = float(values[0] / np.mean(values[1:]))
                bars.append(Bar(f"{name}: {what} to data, over that of data", ratio, at_most=2.0))
        return bars

    def sheet(self, x, label):
        return jf.plot.density(jf.distributions.moons().log_prob, x[:2000], title="draws over the data's density")

    def pictures(self, field: Any, folder: Path) -> None:
        from matplotlib.figure import Figure

        figure, extent = Figure(figsize=(12, 3), dpi=150, layout="constrained"), (-7.0, 12.0, -5.0, 7.5)
        for ax, (steps, calls) in zip(
            figure.subplots(1, 3), {1: "one call", 2: "two calls", 4: "four"}.items(), strict=True
        ):
            x = self.draw(field, jumps(steps), 1000, seed=self.seed)
            title = f"the data's density, draws of {calls}"
            jf.plot.density(jf.distributions.moons().log_prob, x, extent=extent, title=title, ax=ax)
        with whole_file(folder / SAMPLES) as path:
            figure.savefig(path)
        paths = self.draw(field, jumps(8), 1000, seed=self.seed, frames=True)
        with whole_file(folder / TRAJECTORIES) as path:
            jf.plot.trajectories(paths[:200], title="from noise to data in eight jumps").savefig(path)
        jf.plot.animation(paths.swapaxes(0, 1), folder / ANIMATION)
