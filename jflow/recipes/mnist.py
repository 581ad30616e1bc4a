"""MNIST, by a U-Net or a transformer."""

import dataclasses
import functools as ft
from typing import ClassVar, Literal

import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf

from . import _images
from ._recipe import AbstractRecipe, Bar, check_options

_data = ft.cache(jf.data.mnist)


@dataclasses.dataclass(frozen=True)
class Mnist(AbstractRecipe):
    """A U-Net or a DiT on MNIST, class-conditional with guidance."""

    net: Literal["unet", "dit"] = "unet"
    """The network."""
    steps: int = 4000
    """Steps of the optimiser."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 2e-3
    """The highest, after 200 steps; it falls along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters."""
    drop: float = 0.1
    """Share of labels replaced by the null label, for guidance."""
    seed: int = 0
    """Seed of the parameters, the order of the data and the noise."""

    shape: ClassVar = (28, 28, 1)
    num_classes: ClassVar[int] = 10
    draws: ClassVar = 1000
    minutes: ClassVar = "15"

    def __post_init__(self):
        check_options(self)

    def init(self):
        rngs = nnx.Rngs(self.seed)
        if self.net == "unet":
            net = _images.PatchedUNet(
                self.shape, 2, channels=(32, 64), layers=1, num_classes=self.num_classes, rngs=rngs
            )
        else:
            net = jf.nn.DiT(self.shape, patch=4, dim=96, layers=4, heads=4, num_classes=self.num_classes, rngs=rngs)
        field = jf.Field(net, jf.CondOT(), predicts="velocity")
        warmup = min(200, self.steps // 2)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps)
        return jf.train.init(field, optax.adam(schedule, b2=0.99), ema=self.ema)

    def loss(self, field, key, example):
        key_label, key_noise = jr.split(key)
        label = jf.drop_condition(key_label, example["label"], self.num_classes, self.drop)
        return jf.matching_loss(field, key_noise, example["x"], label)

    def batch(self, step):
        return jf.data.batch(_data("train"), self.seed, step, self.batch_size)

    def evaluate(self, field, sampler, num, seed):
        """Judged by an SVM that was trained on real images, and by distances."""
        draw = ft.partial(self.draw, field, sampler, seed=seed)
        train, test = _data("train"), _data("test")
        classifier = _classifier(train)
        return [
            Bar("SVM on the test images", classifier.score(_images.flat(test.x), test.label), at_least=0.97),
            _images.accuracy(draw, num, self.num_classes, 1.0, classifier),
            _images.accuracy(draw, num, self.num_classes, 2.0, classifier, at_least=0.95),
            *_images.distances(draw, train, test, seed),
        ]

    def sheet(self, x, label):
        return jf.plot.image_grid(x, label, ncols=10)

    def pictures(self, field, folder):
        _images.pictures(self, field, _data("train"), folder)


def _classifier(train):
    """An SVM on 60 principal components of the upright images; 10,000 of them are enough."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.svm import SVC

    pipeline = make_pipeline(FunctionTransformer(_upright), PCA(60, random_state=0), SVC(C=10))
    return pipeline.fit(_images.flat(train.x[:10_000]), train.label[:10_000])


def _upright(pixels):
    """Each image sheared by its moments, so that its strokes stand upright, and moved to the centre."""
    from scipy import ndimage

    ink = (np.asarray(pixels, np.float64).reshape(-1, 28, 28) + 1) / 2
    row, column = np.mgrid[:28, :28]
    mass = ink.sum((1, 2)) + 1e-6
    centre_row, centre_column = (ink * row).sum((1, 2)) / mass, (ink * column).sum((1, 2)) / mass
    row, column = row - centre_row[:, None, None], column - centre_column[:, None, None]
    shear = (ink * row * column).sum((1, 2)) / ((ink * row**2).sum((1, 2)) + 1e-6)
    offset = np.stack([centre_row - 13.5, centre_column - 13.5 - 13.5 * shear], axis=1)
    moved = [
        ndimage.affine_transform(image, [[1, 0], [s, 1]], offset=o, order=1)
        for image, s, o in zip(ink, shear, offset, strict=True)
    ]
    return np.reshape(moved, (len(ink), -1))
