"""Pictures and figures that recipes of class-conditional images share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
from flax import nnx
from jaxtyping import Float

import jflow as jf

from ._folder import ANIMATION, SAMPLES, whole_file
from ._recipe import AbstractRecipe, Bar

_ROWS = 8


class PatchedUNet(nnx.Module):
    """A U-Net whose pixels are patches of the image, of `patch` pixels a side: less cost by the square of that."""

    def __init__(self, shape, patch, *, rngs, **options):
        height, width, channels = shape
        self.patch, self.inner = patch, (height // patch, width // patch, channels * patch**2)
        self.unet = jf.nn.UNet(self.inner, rngs=rngs, **options)

    def __call__(self, *given):
        *times, x, args = given  # one time, or the two of a flow map
        tokens = jf.nn.patchify(x, self.patch)
        out = self.unet(*times, tokens.reshape(self.inner), args)
        return jf.nn.depatchify(out.reshape(tokens.shape), self.patch, x.shape)


def flat(x: Any) -> Float[np.ndarray, "n d"]:
    """Images as vectors of their pixels."""
    return np.asarray(x).reshape(len(x), -1)


def accuracy(draw: Callable[..., Any], num: int, classes: int, scale: float, classifier: Any, **target: float) -> Bar:
    """How many of `num` draws, the classes in turn, a classifier of scikit-learn puts into their own class.

    `draw(num, label=, scale=, stream=)` is `AbstractRecipe.draw` of a field, a sampler and a seed.
    """
    label = np.arange(num) % classes
    x = draw(num, label=label, scale=scale, stream=int(scale))
    figure = jf.metrics.class_accuracy(x, label, lambda x: classifier.predict(flat(x)))
    return Bar(f"accuracy of {num} draws, scale {scale:g}", figure, **target)


def distances(
    draw: Callable[..., Any],
    train: Any,
    test: Any,
    seed: int,
    *,
    num: int = 600,
    energy: float = 1.3,
    sliced: float | None = 1.3,
) -> list[Bar]:
    """Draws at scale 1 against test images, in units of what training images give; and whether they are copies.

    Means over five times `num` draws, the classes in the proportions of training, and five times as many training
    images. `energy` and `sliced` are the most that the two ratios must be.
    """
    n, key, rng = min(num, len(train)), jr.key(seed), np.random.default_rng(seed)
    label = None if train.label is None else np.tile(np.sort(train.label)[np.arange(n) * len(train) // n], 5)
    drawn = np.split(draw(5 * n, label=label, stream=3), 5)
    real = [train.x[rng.choice(len(train), n, replace=False)] for _ in range(5)]
    bars = []
    for name, most, distance in (
        ("energy distance", energy, jf.metrics.energy_distance),
        ("sliced Wasserstein", sliced, lambda x, y: jf.metrics.sliced_wasserstein(key, x, y)),
    ):
        ratio = np.mean([distance(x, test.x) for x in drawn]) / np.mean([distance(x, test.x) for x in real])
        bars.append(Bar(f"{name} to test, over that of training images", float(ratio), at_most=most))
    nearest = [np.median(jf.metrics.nearest_distance(x, train.x)) for x in (np.concatenate(drawn), test.x)]
    ratio = float(nearest[0] / nearest[1])
    return [*bars, Bar("median distance to nearest training image, over test's", ratio, at_least=0.9)]


def pictures(recipe: AbstractRecipe, field: Any, train: Any, folder: Path) -> None:
    """Training images beside draws, at scales 1 and 2 where there are classes, which take turns; and an animation.

    The draws of a flow map are of one jump and of two.
    """
    from matplotlib.figure import Figure

    classes = recipe.num_classes or 1
    columns = classes * max(1, 8 // classes) if classes <= 12 else 10
    turn = np.arange(_ROWS * columns) % classes
    label = np.zeros(len(train), int) if train.label is None else train.label
    shown = [np.resize(np.flatnonzero(label == c), row // classes + 1)[-1] for row, c in enumerate(turn)]

    def draw(steps, **options):
        return recipe.draw(field, recipe.sampler(steps=steps), len(turn), seed=recipe.seed, **options)

    sheets = {"training images": train.x[shown]}
    if isinstance(field, jf.FlowMap):
        sheets |= {"draws, one call": draw(1), "draws, two calls": draw(2)}
        frames = draw(8, frames=True)
    elif recipe.num_classes is None:
        frames = draw(40, frames=True)
        sheets["draws"] = frames[:, -1]
    else:
        frames = draw(40, scale=2.0, frames=True)
        sheets |= {"draws, scale 1": draw(40), "draws, scale 2": frames[:, -1]}
    figure = Figure(figsize=(4 * len(sheets), 4 * _ROWS / columns), dpi=150, layout="constrained")
    for ax, (title, x) in zip(figure.subplots(1, len(sheets)), sheets.items(), strict=True):
        jf.plot.image_grid(x, ncols=columns, title=title, ax=ax)
    with whole_file(folder / SAMPLES) as path:
        figure.savefig(path)
    jf.plot.animation(frames.swapaxes(0, 1), folder / ANIMATION, ncols=columns)
