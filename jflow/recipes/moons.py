"""Two moons in the plane: the smallest flow, whose exact likelihood can be compared with the data's."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf

from ._folder import ANIMATION, SAMPLES, TRAJECTORIES, whole_file
from ._recipe import AbstractRecipe, Bar, check_memory, check_options

_draw_data = jax.jit(jf.data.moons, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Moons(AbstractRecipe):
    """An MLP on two half circles in the plane, without classes."""

    steps: int = 5000
    """Steps of the optimiser."""
    batch_size: int = 512
    """Points a step, fresh at each."""
    learning_rate: float = 2e-3
    """The highest; it falls to zero along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters."""
    width: int = 64
    """Width of the hidden layers."""
    depth: int = 4
    """Number of hidden layers."""
    seed: int = 0
    """Seed of the parameters, the data and the noise."""

    shape: ClassVar = (2,)
    num_classes: ClassVar = None
    draws: ClassVar = 2000
    minutes: ClassVar = "under 1"

    def __post_init__(self):
        check_options(self)
        check_memory("So many layers of this width", self.depth * self.width**2)

    def init(self):
        net = jf.nn.MLP(2, width=self.width, depth=self.depth, rngs=nnx.Rngs(self.seed))
        field = jf.Field(net, jf.CondOT(), predicts="velocity")
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return jf.train.init(field, optax.adam(schedule), ema=self.ema)

    def loss(self, field, key, example):
        return jf.matching_loss(field, key, example["x"])

    def batch(self, step):
        _, key = jr.split(jr.key(self.seed))  # the first half is for the noise of training
        return {"x": _draw_data(jr.fold_in(key, step), self.batch_size)}

    def evaluate(self, field, sampler, num, seed):
        """Distances to fresh data in units of the data's own, and the divergence from the data's density."""
        x, key = self.draw(field, sampler, num, seed=seed), jr.key(seed)
        fresh = [np.asarray(_draw_data(key, num)) for key in jr.split(key, 6)]
        energy = [jf.metrics.energy_distance(y, fresh[0]) for y in (x, *fresh[1:])]
        sliced = [jf.metrics.sliced_wasserstein(key, y, fresh[0]) for y in (x, *fresh[1:])]
        exact, points = jf.distributions.moons(), fresh[1][:1000]
        gap = jax.vmap(exact.log_prob)(points) - _log_prob(field, points)
        return [
            Bar("energy distance to data, over that of data", float(energy[0] / np.mean(energy[1:])), at_most=1.5),
            Bar("sliced Wasserstein to data, over that of data", float(sliced[0] / np.mean(sliced[1:])), at_most=1.5),
            Bar("divergence KL(data || model), nats", float(jnp.mean(gap)), at_most=0.1),
        ]

    def sheet(self, x, label):
        return jf.plot.density(jf.distributions.moons().log_prob, x[:2000], title="draws over the data's density")

    def pictures(self, field: Any, folder: Path) -> None:
        from matplotlib.figure import Figure

        paths = self.draw(field, self.sampler(steps=40), 1000, seed=self.seed, frames=True)
        figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        extent = (-7.0, 12.0, -5.0, 7.5)
        exact = jf.distributions.moons()
        jf.plot.density(exact.log_prob, paths[:, -1], extent=extent, title="the data's density, draws", ax=left)
        jf.plot.density(lambda x: _log_density(field, x), extent=extent, resolution=150, title="the model's", ax=right)
        with whole_file(folder / SAMPLES) as path:
            figure.savefig(path)
        with whole_file(folder / TRAJECTORIES) as path:
            jf.plot.trajectories(paths[:200], title="from noise to data").savefig(path)
        jf.plot.animation(paths.swapaxes(0, 1), folder / ANIMATION)


def _log_density(field, x) -> Any:
    return jf.log_prob(field, x, jf.samplers.heun_flow(32)).log_prob


@eqx.filter_jit
def _log_prob(field, points):
    return jax.vmap(lambda x: _log_density(field, x))(points)
