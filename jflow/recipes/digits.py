"""The demo: a class-conditional flow on real handwritten digits, in two minutes on a laptop."""

import dataclasses
import functools as ft
from typing import ClassVar

import jax.random as jr
import optax
from flax import nnx

import jflow as jf

from . import _images
from ._recipe import _MOST_STEPS, AbstractRecipe, Bar, check_integers, check_options

_data = ft.cache(jf.data.digits)


@dataclasses.dataclass(frozen=True)
class Digits(AbstractRecipe):
    """A U-Net on handwritten digits of 8 x 8 pixels, class-conditional with guidance."""

    steps: int = 2000
    """Steps of the optimiser."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 3e-3
    """The highest, after 100 steps; it falls along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters."""
    drop: float = 0.1
    """Share of labels replaced by the null label, for guidance."""
    channels: tuple[int, ...] = (24, 48)
    """Channels of the U-Net's levels."""
    embedding: int = 32
    """Features of the time and of the label."""
    seed: int = 0
    """Seed of the parameters, the order of the data and the noise."""

    shape: ClassVar = (8, 8, 1)
    num_classes: ClassVar[int] = 10
    draws: ClassVar = 5000
    minutes: ClassVar = "2"

    def __post_init__(self):
        check_options(self)

    def init(self):
        net = jf.nn.UNet(
            self.shape, channels=self.channels, layers=1, embedding=self.embedding, num_classes=self.num_classes,
            rngs=nnx.Rngs(self.seed),
        )  # fmt: skip
        field = jf.Field(net, jf.CondOT(), predicts="velocity")
        warmup = min(100, self.steps // 2)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps)
        return jf.train.init(field, optax.adam(schedule, b2=0.99), ema=self.ema)

    def loss(self, field, key, example):
        key_label, key_noise = jr.split(key)
        label = jf.drop_condition(key_label, example["label"], self.num_classes, self.drop)
        return jf.matching_loss(field, key_noise, example["x"], label)

    def batch(self, step):
        return jf.data.batch(_data("train"), self.seed, step, self.batch_size)

    def sampler(self, name=None, steps=None, **options):
        """By default Adams' method of order 3 with 10 steps of a call each, as `jf.recommended` has it."""
        if name is not None or any(value is not None for value in options.values()):
            return super().sampler(name, steps, **options)
        steps = 10 if steps is None else steps
        check_integers(steps=(steps, 1, _MOST_STEPS))
        return jf.FixedSteps(
            jf.EasedGrid(steps, 1.0, 1.5), jf.Adams(3, corrector=True), clock=jf.RatioClock(), end="stop"
        )

    def evaluate(self, field, sampler, num, seed):
        """Judged by an SVM that was trained on the same images, and by distances."""
        from sklearn.svm import SVC

        draw = ft.partial(self.draw, field, sampler, seed=seed)
        train, test = _data("train"), _data("test")
        svm = SVC(C=10).fit(_images.flat(train.x), train.label)
        return [
            Bar("SVM on the test images", svm.score(_images.flat(test.x), test.label), at_least=0.985),
            _images.accuracy(draw, num, self.num_classes, 1.0, svm, at_least=0.97),
            _images.accuracy(draw, num, self.num_classes, 2.0, svm, at_least=0.995),
            *_images.distances(draw, train, test, seed),
        ]

    def sheet(self, x, label):
        return jf.plot.image_grid(x, label, ncols=10)

    def pictures(self, field, folder):
        _images.pictures(self, field, _data("train"), folder)
