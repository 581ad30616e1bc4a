"""The pictures of the pages, written into `docs/images`: `.venv/bin/python docs/pictures.py`, and the names of some.

Most fields are the exact ones of distributions: nothing is trained, and each run draws the same pictures. `text` runs
the code of its page.
"""

import functools as ft
import re
import sys
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.figure import Figure

import jflow as jf

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
EVERY = dfx.SaveAt(t0=True, steps=True)
generate = ft.partial(jf.generate, progress=False)


def save(figure, name):
    figure.savefig(IMAGES / f"{name}.png", dpi=110, bbox_inches="tight")


def axes(n, width=2.6, height=2.6):
    figure = Figure(figsize=(width * n, height))
    return figure, figure.subplots(1, n)


def plane(ax, title, centre=(2.5, 1.5), half=9.0):
    low, high = np.subtract(centre, half), np.add(centre, half)
    ax.set_aspect("equal", adjustable="box")
    ax.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])


def path():
    """Noise and data at the ends, and what lies between."""
    path, noise = jf.CondOT(), jr.normal(jr.key(0), (2000, 2))
    data = jf.data.moons(jr.key(1), 2000)
    figure, grid = axes(5)
    for ax, t in zip(grid, (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
        x = jax.vmap(lambda a, b, t=t: path.interpolate(t, a, b))(noise, data)
        ax.scatter(*np.asarray(x).T, s=1, color=jf.plot.NOISE if t == 0 else jf.plot.DATA if t == 1 else jf.plot.INK)
        plane(ax, f"t = {t:g}")
    save(figure, "path")


def field():
    """The marginal velocity at three times, and the trajectories along it."""
    world = jf.distributions.moons().field(jf.CondOT())
    figure, grid = axes(4)
    points = jnp.stack(jnp.meshgrid(jnp.linspace(-6, 11, 15), jnp.linspace(-7, 10, 15)), -1).reshape(-1, 2)
    for ax, t in zip(grid[:3], (0.1, 0.5, 0.9), strict=True):
        velocity = jax.vmap(lambda x, t=t: world.velocity(t, x))(points)
        ax.quiver(*np.asarray(points).T, *np.asarray(velocity).T, angles="xy", color=jf.plot.INK, width=0.004)
        plane(ax, f"velocity, t = {t:g}")
    draw = eqx.filter_vmap(lambda key: jf.sample(world, key, (2,), jf.UniformGrid(60), saveat=EVERY).xs)
    jf.plot.trajectories(draw(jr.split(jr.key(0), 60)), ax=grid[3])
    plane(grid[3], "trajectories")
    save(figure, "field")


def clock():
    """The same trajectories in three clocks: time against the rescaled state."""
    world = jf.distributions.GaussianMixture([[-2.0], [1.0], [2.0]], stds=[0.15, 0.15, 0.15]).field(jf.VP())
    times, starts = jnp.linspace(0.0, 1.0, 400), jnp.linspace(-2.2, 2.2, 15)[:, None]
    xs = eqx.filter_vmap(lambda x: jf.decode(world, x, jf.FixedSteps(times, dfx.Heun()), saveat=EVERY).xs)(starts)
    figure, grid = axes(3, 3.4)
    for ax, clock in zip(grid, (jf.PathClock(), jf.RatioClock(), jf.AngleClock()), strict=True):
        tau = jax.vmap(lambda t, clock=clock: clock.time(world.path, t))(times)
        scale = jax.vmap(lambda t, clock=clock: jnp.asarray(1.0 if (c := clock.scale(world.path, t)) is None else c))
        ax.plot(tau, np.asarray(xs[..., 0] * scale(times)).T, color=jf.plot.NOISE, linewidth=0.8)
        ax.set(title=type(clock).__name__, xlabel="the clock's time", ylabel="the clock's state")
    figure.tight_layout()
    save(figure, "clock")


def noise():
    """One start, carried without noise and with it; and the two clouds of ends."""
    world = jf.distributions.moons().field(jf.CondOT())
    figure, grid = axes(4)
    for i, eta in enumerate((None, 1.0)):
        sampler = jf.FixedSteps(jf.UniformGrid(200), eta=eta)

        def one(key, sampler=sampler, eta=eta):
            start = jnp.array([0.5, 0.0])
            return jf.decode(world, start, sampler, key=None if eta is None else key, saveat=EVERY).xs

        xs = eqx.filter_vmap(one)(jr.split(jr.key(3), 12))
        jf.plot.trajectories(xs, ax=grid[2 * i])
        plane(grid[2 * i], "one start, ODE" if eta is None else "one start, eta = 1")
        x = generate(world, jr.key(4), 2000, (2,), sampler).x
        grid[2 * i + 1].scatter(*x.T, s=1, color=jf.plot.DATA)
        plane(grid[2 * i + 1], "2000 draws, the same law")
    save(figure, "noise")


def likelihood():
    """The density that the flow carries, beside the exact one."""
    world = jf.distributions.moons(noise=0.15)
    field, sampler = world.field(jf.CondOT()), jf.FixedSteps(jf.UniformGrid(64, t1=0.995), dfx.Heun())
    figure, grid = axes(2, 3.4, 3.4)
    draws = jf.data.moons(jr.key(0), 200, noise=0.15)
    for ax, log_density, title in (
        (grid[0], world.log_prob, "exact"),
        (grid[1], lambda x: jf.log_prob(field, x, sampler).log_prob, "by log_prob"),
    ):
        extent = (-8.0, 13.0, -6.0, 8.0)
        jf.plot.density(log_density, draws, extent=extent, resolution=80, title=title, ax=ax)
    save(figure, "likelihood")


def guidance():
    """What the scale does: draws of one class of a mixture."""
    mixture = jf.distributions.GaussianMixture([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]], stds=[0.9, 0.9, 0.9])
    world = jf.distributions.LabelledMixture(mixture)
    guided = jf.Guided(world.field(jf.CondOT()), null=world.null)
    figure, grid = axes(4)
    for ax, scale in zip(grid, (0.0, 1.0, 2.0, 4.0), strict=True):
        args = jf.Args(1, scale=scale)
        x = generate(guided, jr.key(0), 1500, (2,), jf.samplers.flow_euler(64), args=args).x
        ax.scatter(*x.T, s=1, color=jf.plot.DATA)
        plane(ax, f"scale {scale:g}", (1.5, 1.0), 6.0)
    save(figure, "guidance")


def page(name):
    """What the code of a page defines, when it has run."""
    namespace = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    return namespace


def rows(images, labels, name, width=0.55):
    """A row of images for each label, which stands to its left."""
    n, columns = len(labels), len(images[0])
    figure = Figure(figsize=(width * columns + 1.6, width * n))
    for ax, row, label in zip(figure.subplots(n, 1, squeeze=False)[:, 0], images, labels, strict=True):
        jf.plot.image_grid(np.clip(row, -1, 1), ncols=columns, ax=ax)
        ax.text(-0.015, 0.5, label, transform=ax.transAxes, ha="right", va="center", fontsize=9, color=jf.plot.INK)
    figure.subplots_adjust(left=0.26, right=1, top=1, bottom=0, hspace=0.02)
    save(figure, name)


def text():
    """Draws for four sentences."""
    made = page("text.md")
    sentences = [f"a {tone} {side} half" for tone in ("bright", "dark") for side in ("left", "right")]
    guided = jf.Guided(made["state"].ema, null=made["embed"](""))
    images = [
        generate(
            guided,
            jr.key(i),
            8,
            (8, 8, 1),
            args=jf.Args(made["embed"](words), scale=2.0),
            args_in_axes=None,
        ).x
        for i, words in enumerate(sentences)
    ]
    rows(images, sentences, "text")


MAKERS = {f.__name__: f for f in (path, field, clock, noise, likelihood, guidance, text)}

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()
