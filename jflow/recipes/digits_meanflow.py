"""A few-step model of the demo's digits: one network call a picture."""

import dataclasses
import functools as ft
from typing import ClassVar

import optax
from flax import nnx

import jflow as jf

from . import _images
from ._recipe import AbstractMapRecipe, Bar, check_options, jumps

_data = ft.cache(jf.data.digits)


@dataclasses.dataclass(frozen=True)
class DigitsMeanflow(AbstractMapRecipe):
    """A flow map on handwritten digits of 8 x 8 pixels, class-conditional: one or two network calls a draw."""

    steps: int = 4200
    """Steps of the optimiser."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 3e-3
    """The highest, after 100 steps; it falls along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters."""
    diagonal: float = 0.5
    """Share of examples with s = t, where the map learns its velocity."""
    channels: tuple[int, ...] = (24, 48)
    """Channels of the U-Net's levels."""
    embedding: int = 32
    """Features of the times and of the label."""
    seed: int = 0
    """Seed of the parameters, the order of the data and the noise."""

    shape: ClassVar = (8, 8, 1)
    num_classes: ClassVar[int] = 10
    draws: ClassVar = 5000
    minutes: ClassVar = "6"

    def __post_init__(self):
        check_options(self)

    def init(self):
        net = jf.nn.UNet(
            self.shape, channels=self.channels, layers=1, embedding=self.embedding, num_classes=self.num_classes,
            times=2, rngs=nnx.Rngs(self.seed),
        )  # fmt: skip
        warmup = min(100, self.steps // 2)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps)
        return jf.train.init(jf.FlowMap(net, jf.CondOT()), optax.adam(schedule, b2=0.99), ema=self.ema)

    def loss(self, field, key, example):
        law = jf.few_step.TimePairs(jf.laws.Uniform(), diagonal=self.diagonal)
        return jf.few_step.flow_map_loss(field, key, example["x"], example["label"], law=law)

    def batch(self, step):
        return jf.data.batch(_data("train"), self.seed, step, self.batch_size)

    def evaluate(self, field, sampler, num, seed):
        """One jump, and the sampler, judged by an SVM that was trained on the same images, and by distances."""
        from sklearn.svm import SVC

        train, test = _data("train"), _data("test")
        svm = SVC(C=10).fit(_images.flat(train.x), train.label)
        bars = [Bar("SVM on the test images", svm.score(_images.flat(test.x), test.label), at_least=0.985)]
        for name, way, least in (("one call", jumps(1), 0.93), ("the sampler", sampler, 0.95)):
            draw = ft.partial(self.draw, field, way, seed=seed)
            judged = [_images.accuracy(draw, num, self.num_classes, 1.0, svm, at_least=least)]
            judged += _images.distances(draw, train, test, seed, energy=1.6, sliced=None)
            bars += [dataclasses.replace(bar, name=f"{name}: {bar.name}") for bar in judged]
        return bars

    def sheet(self, x, label):
        return jf.plot.image_grid(x, label, ncols=10)

    def pictures(self, field, folder):
        _images.pictures(self, field, _data("train"), folder)
