"""Your own pictures, by a U-Net or a transformer."""

import dataclasses
import functools as ft
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf
from jflow.data._folder import fit

from . import _images
from ._recipe import _MOST, AbstractRecipe, Bar, check_integers, check_options

_MOST_JUDGED = 10_000  # training images that draws are compared with, as long as their numbers are no more than
_MOST_NUMBERS = 2**27
_MOST_TEST = 1000


@dataclasses.dataclass(frozen=True)
class Images(AbstractRecipe):
    """A U-Net or a DiT on your own pictures, class-conditional with guidance where they have classes."""

    data: str
    """A folder of pictures, with a sub-folder a class or without classes; or a folder with the IDX files of MNIST's
    layout or the binary files of CIFAR-10; or an .npz of images."""
    size: int = 32
    """The side of the pictures: each is cut to its central square and resized."""
    grey: bool = False
    """Leave out colours."""
    classes: int | None = None
    """The number of classes, which the data must have, 0 for none; by default that of the data."""
    flip: bool = False
    """Mirror half of the pictures, left and right."""
    net: Literal["unet", "dit"] = "unet"
    """The network."""
    patch: int = 2
    """The side of the patches that are one pixel of the U-Net, or one token of the DiT; 1 is best and slowest."""
    channels: tuple[int, ...] = (48, 96)
    """Channels of the U-Net's levels."""
    layers: int = 1
    """Residual layers of each level of the U-Net."""
    dim: int = 128
    """Numbers of a token of the DiT."""
    depth: int = 6
    """Blocks of the DiT."""
    steps: int = 1500
    """Steps of the optimiser."""
    batch_size: int = 64
    """Pictures a step."""
    learning_rate: float = 2e-3
    """The highest, reached after 200 steps, or halfway in a run under 400; then it falls along a cosine."""
    ema: float = 0.995
    """Decay of the running average of the parameters: it remembers 1 / (1 - ema) steps; less for a short run."""
    drop: float = 0.1
    """Share of labels replaced by the null label, for guidance."""
    seed: int = 0
    """Seed of the parameters, the order of the data, its held-out part and the noise."""

    draws: ClassVar = 500
    minutes: ClassVar = "10"

    def __post_init__(self):
        check_options(self)
        if self.size % self.patch:
            raise ValueError(f"size must be a multiple of patch. Got size={self.size} and patch={self.patch}.")
        if self.classes is not None:
            check_integers(classes=(self.classes, 0, _MOST))
        object.__setattr__(self, "data", str(Path(self.data).expanduser().absolute()))
        if self.classes is None:  # what a run folder and a model file then know without the data
            object.__setattr__(self, "classes", self._train.num_classes or 0)

    @property
    def shape(self):
        return (self.size, self.size, 1 if self.grey else 3)

    @property
    def num_classes(self):
        return self.classes or None

    @property
    def _train(self):
        return self._open()[0]

    def _open(self):
        """Training and test images; raises `ValueError` where they do not have the classes of this recipe."""
        parts = _data(self.data, self.size, self.grey, self.seed)
        if self.classes is not None and (found := parts[0].num_classes or 0) != self.classes:
            what = f"{found} classes" if found else "no classes"
            raise ValueError(
                f"The pictures must have the classes of the run, here {self.classes}. Got {self.data}, which has "
                f"{what}: a class is a sub-folder with pictures, and pictures may not lie beside these."
            )
        return parts

    def init(self):
        options = {"num_classes": self.num_classes, "rngs": nnx.Rngs(self.seed)}
        if self.net == "unet":
            net = _images.PatchedUNet(self.shape, self.patch, channels=self.channels, layers=self.layers, **options)
        else:
            net = jf.nn.DiT(self.shape, patch=self.patch, dim=self.dim, layers=self.depth, heads=4, **options)
        field = jf.Field(net, jf.CondOT(), predicts="velocity")
        warmup = min(200, self.steps // 2)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps)
        return jf.train.init(field, optax.adam(schedule, b2=0.99), ema=self.ema)

    def loss(self, field, key, example):
        key_label, key_flip, key_noise = jr.split(key, 3)
        x = jf.data.flip(key_flip, example["x"]) if self.flip else example["x"]
        if self.num_classes is None:
            return jf.matching_loss(field, key_noise, x)
        label = jf.drop_condition(key_label, example["label"], self.num_classes, self.drop)
        return jf.matching_loss(field, key_noise, x, label)

    def batch(self, step):
        return jf.data.batch(self._train, self.seed, step, self.batch_size)

    def evaluate(self, field, sampler, num, seed):
        """Judged by distances, and by a classifier that was trained on the same pictures where they have classes."""
        draw = ft.partial(self.draw, field, sampler, seed=seed)
        train, test = map(_plain, self._open())
        bars = []
        if self.num_classes is not None:
            classifier = _classifier(train)
            real = classifier.score(_images.flat(test.x), test.label)
            bars = [
                Bar("classifier on held-out pictures", real),
                _images.accuracy(draw, num, self.num_classes, 1.0, classifier),
                _images.accuracy(draw, num, self.num_classes, 2.0, classifier, at_least=real - 0.05),
            ]
        return [*bars, *_images.distances(draw, train, test, seed, num=200)]

    def sheet(self, x, label):
        return jf.plot.image_grid(x, label, ncols=10)

    def pictures(self, field, folder):
        _images.pictures(self, field, _plain(self._train), folder)


@ft.lru_cache(4)
def _data(path: str, size: int, grey: bool, seed: int) -> tuple[jf.data.Dataset, jf.data.Dataset]:
    """Training and test images, as bytes of one size."""
    splits = read(path, size, grey)
    return (splits[0], splits[1]) if len(splits) == 2 else _divided(splits[0], seed)


def read(path: str | Path, size: int, grey: bool) -> list[jf.data.Dataset]:
    """The images at `path`, held as bytes of one size: of training and of test where files say which is which.

    Raises `FileNotFoundError` where there is nothing, and `ValueError` where there are no images.
    """
    folder = Path(path)
    if folder.suffix == ".npz":
        found = [jf.data.from_npz(folder)]
    elif any(folder.glob("*-images-idx3-ubyte*")):
        found = [jf.data.fashion_mnist(split, folder) for split in ("train", "test")]  # MNIST's layout is the same
        found = [dataclasses.replace(part, name=folder.name, classes=None) for part in found]
    elif any(folder.glob("data_batch_*.bin")):
        found = [jf.data.cifar10(split, folder) for split in ("train", "test")]
    else:
        return [jf.data.from_folder(folder, size, grey=grey)]
    return [_resized(part, size, grey, folder) for part in found]


def _resized(data: jf.data.Dataset, size: int, grey: bool, where: Path) -> jf.data.Dataset:
    x = data.x
    within = x.dtype == np.uint8 or bool(-1 <= x.min() < 0 and x.max() <= 1)  # what is never negative is in [0, 1]
    if x.ndim != 4 or x.shape[3] not in (1, 3) or not within:
        raise ValueError(
            f"Images must have shape (n, H, W, C), C 1 or 3, as bytes or in [-1, 1]. Got x of shape {x.shape} and "
            f"values {x.min():.3g} .. {x.max():.3g} in {where}: save 2 * x - 1 of images in [0, 1]."
        )
    x = x if x.dtype == np.uint8 else np.rint((x + 1) * 127.5).astype(np.uint8)
    return dataclasses.replace(data, x=fit(x, size, grey))


def _divided(data: jf.data.Dataset, seed: int) -> tuple[jf.data.Dataset, jf.data.Dataset]:
    """A tenth of each class is held out, one picture at least where it has two, and about 1,000 in all at most."""
    label = np.zeros(len(data), int) if data.label is None else data.label
    order = np.random.default_rng(seed).permutation(len(data))
    test, classes = np.zeros(len(data), bool), data.num_classes or 1
    for c in range(classes):
        own = order[label[order] == c]
        test[own[: min(max(len(own) // 10, len(own) > 1), max(1, _MOST_TEST // classes))]] = True
    if not test.any():
        raise ValueError(f"There must be two pictures at least, the second to judge draws by. Got {len(data)}.")
    train, held = (
        dataclasses.replace(data, x=data.x[part], label=None if data.label is None else data.label[part])
        for part in (~test, test)
    )
    return train, held


def _plain(data: jf.data.Dataset) -> Any:
    """The images, or as many as draws are compared with, as numbers."""
    most = max(1, min(_MOST_JUDGED, _MOST_NUMBERS // data.x[0].size))
    part = np.random.default_rng(0).permutation(len(data))[:most]
    return jf.data.Dataset(**{"label": None, **data[np.sort(part)]}, name=data.name, num_classes=data.num_classes)


def _classifier(train):
    """An SVM on 60 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    x = _images.flat(train.x)
    return make_pipeline(PCA(min(60, *x.shape), random_state=0), SVC(C=10)).fit(x, train.label)
