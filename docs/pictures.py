"""The pictures of the pages, written into `docs/images`: `.venv/bin/python docs/pictures.py NAME ...`.

Without names it makes those of the ideas, whose fields are the exact ones of distributions: nothing is trained. Those
of the gallery take a minute or two each. They train what their pages do, and mostly run the very code of the page.
`inpainting`, `drawings` and `jumps` take a run of the command line, in the folder where the gallery's command puts it.
"""

import functools as ft
import re
import sys
import tempfile
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from PIL import Image

import jflow as jf

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
RUNS = DOCS.parent / "runs"
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


def page(name, blocks=None):
    """What the code of a page defines, when so many of its blocks have run."""
    namespace = {"__name__": "page"}
    found = re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    for block in found[:blocks]:
        exec(block, namespace)
    return namespace


def cut(run, panels, name):
    """Two panels of the sheet that a run has drawn, of three, and of these the upper half."""
    with Image.open(run / "samples.png") as sheet:
        width, height = sheet.width // 3, round(0.525 * sheet.height)
        both = Image.new("RGB", (2 * width, height))
        for i, panel in enumerate(panels):
            both.paste(sheet.convert("RGB").crop((panel * width, 0, (panel + 1) * width, height)), (i * width, 0))
    both.quantize(200).save(IMAGES / f"{name}.png")


def trained(loss, draw, steps):
    """A field in the plane after so many steps on fresh data."""
    field = jf.Field(jf.nn.MLP(2, width=96, depth=4, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    state = jf.train.init(field, optax.adam(optax.cosine_decay_schedule(2e-3, steps)), ema=0.99)
    draw = jax.jit(draw, static_argnums=1)

    def batches(i):
        return draw(jr.fold_in(jr.key(1), i), 256)

    return jf.train.fit(state, loss, batches, steps=steps, key=jr.key(2), progress=False)[0].ema


def points(ax, x, title, half=7.0, color=jf.plot.DATA, centre=(0.0, 0.0)):
    ax.scatter(*np.asarray(x).T, s=1.5, color=color, linewidths=0)
    plane(ax, title, centre, half)


def rows(images, labels, name, width=0.6):
    """A row of images for each label, which stands to its left."""
    figure = Figure(figsize=(width * len(images[0]), width * len(labels)))
    grid = figure.subplots(len(labels), len(images[0]), gridspec_kw={"wspace": 0.1, "hspace": 0.1})
    for line, row, label in zip(grid, images, labels, strict=True):
        for ax, image in zip(line, row, strict=True):
            ax.imshow(np.clip((np.asarray(image) + 1) / 2, 0, 1), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(color="silver", linewidth=0.5)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", color=jf.plot.INK)
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
            progress=False,
        ).x
        for i, words in enumerate(sentences)
    ]
    rows(images, sentences, "text")


def latents():
    """Digits, the same through sixteen numbers, and draws of these."""
    made = page("howto/latents.md")

    def batches(i):
        return jf.data.batch(made["data"], 0, i, 128)

    state, _ = jf.train.fit(made["state"], made["loss"], batches, steps=4000, key=jr.key(0), progress=False)
    z = generate(state.ema, jr.key(1), 14, (16,)).x
    digits, to_image = made["digits"][:14], made["to_image"]
    images = [digits.reshape(-1, 8, 8, 1), to_image(made["to_latent"](digits)), to_image(z)]
    rows(images, ["data", "16 numbers of it", "draws"], "latents")


def inpainting():
    """The upper half is known: draws of the lower one."""
    from jflow.recipes import load

    known, run = page("howto/inverse.md", 1)["Known"], load(RUNS / "digits")
    real = jf.data.digits("test")
    values = np.stack([real.x[np.flatnonzero(real.label == c)[1]] for c in range(10)])
    mask = np.broadcast_to(np.arange(8)[:, None, None] < 4, (30, 8, 8, 1))
    args = jf.Args(np.arange(30) % 10, known=(np.tile(values, (3, 1, 1, 1)), mask))
    sampler = jf.FixedSteps(jf.UniformGrid(100, t0=0.01), eta=1.0)
    x = generate(known(run.field, std=0.1), jr.key(0), 30, (8, 8, 1), sampler, args=args, args_in_axes=0).x
    upper = np.where(mask[:10], values, 0.0)
    rows([upper, *x.reshape(3, 10, 8, 8, 1), values], ["known", "draws", "", "", "the image"], "inpainting")


def jumps():
    """Digits by one jump and by two."""
    cut(RUNS / "digits-meanflow", (1, 2), "jumps")


def finetune():
    """Draws before and after a reward; with it goes the distance to the velocity of the first field."""
    first = trained(jf.matching_loss, jf.data.moons, 3000)
    sampler = jf.UniformGrid(16)

    def loss(field, key, example):
        key_draw, key_time = jr.split(key)
        x = jf.sample(field, key_draw, (2,), sampler).x
        t, noise = jr.uniform(key_time), jr.normal(key_time, (2,))
        x_t = first.path.interpolate(t, noise, jax.lax.stop_gradient(x))
        kept = jnp.sum((field.velocity(t, x_t) - first.velocity(t, x_t)) ** 2)
        return jnp.maximum(x[1] - 2.5, 0.0) ** 2 + 0.1 * kept  # no reward above the line

    state = jf.train.init(first, optax.adam(1e-3), ema=0.95)
    for i in range(300):
        state, _ = jf.train.step(state, loss, jr.key(i), jnp.zeros((128, 1)))
    figure, grid = axes(2, 3.4)
    for ax, field, title in zip(grid, (first, state.ema), ("before", "after"), strict=True):
        points(ax, generate(field, jr.key(6), 2000, (2,)).x, title, 7.5, centre=(2.5, 1.5))
        ax.axhline(2.5, color=jf.plot.NOISE, linewidth=1, linestyle="--")
    save(figure, "finetune")


def drawings():
    """Houses and trees: pictures of a folder, and draws."""
    cut(Path(tempfile.gettempdir(), "jflow-pictures", "run"), (0, 2), "drawings")


IDEAS = {f.__name__: f for f in (path, field, clock, noise, likelihood, guidance)}
GALLERY = {f.__name__: f for f in (text, latents, inpainting, jumps, finetune, drawings)}

if __name__ == "__main__":
    for name in sys.argv[1:] or IDEAS:
        (IDEAS | GALLERY)[name]()
