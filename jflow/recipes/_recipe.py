"""What every recipe is, how it is drawn from, and what it is judged by."""

import abc
import dataclasses
import math
import os
import re
from typing import Any, ClassVar

import diffrax as dfx
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

import jflow as jf

_BATCH = 500
_MOST = 2**31 - 1  # steps and sizes are int32 in the arrays
_MOST_SEED = 2**32 - 1  # jax.random.key keeps 32 bits of a seed
_MOST_STEPS = 2**24  # float32 has no more times that are equally apart


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of a report: a figure, and the least or the most that it must be, if anything."""

    name: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The line as the keys bar, figure, target and pass; without a target the last two are `None`."""
        figure, target, passed = float(self.figure), None, None
        if self.at_least is not None:
            target, passed = f">= {self.at_least:g}", figure >= self.at_least
        if self.at_most is not None:
            target, passed = f"<= {self.at_most:g}", figure <= self.at_most
        return {"bar": self.name, "figure": figure, "target": target, "pass": passed}


class AbstractRecipe(abc.ABC):
    """A run from data to figures. A final class is a frozen dataclass whose fields are the options of the run."""

    shape: ClassVar[tuple[int, ...]]
    """The shape of one event."""
    num_classes: ClassVar[int | None]
    """The number of classes, labelled from 0; `None` without classes. The label `num_classes` stands for none."""
    draws: ClassVar[int]
    """The number of draws that the report's bars are about."""
    minutes: ClassVar[str]
    """What a run with the default options takes on two CPU cores."""

    steps: int
    seed: int

    @classmethod
    def name(cls) -> str:
        """The name in `RECIPES` and on the command line: that of the class, with hyphens."""
        return re.sub("(?!^)(?=[A-Z])", "-", cls.__name__).lower()

    @abc.abstractmethod
    def init(self) -> jf.train.State:
        """The state before the first step; raises `ValueError` for options that do not go together."""

    @abc.abstractmethod
    def loss(self, field: Any, key: Key[Array, ""], example: dict[str, Array]) -> Float[Array, ""]:
        """The loss of one example."""

    @abc.abstractmethod
    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step."""

    @abc.abstractmethod
    def evaluate(self, field: Any, sampler: Any, num: int, seed: int) -> list[Bar]:
        """What the report says of the trained field, judged by `num` draws of a sampler."""

    @abc.abstractmethod
    def sheet(self, x: Float[np.ndarray, "n ..."], label: Int[np.ndarray, " n"] | None) -> Any:
        """A figure of draws."""

    @abc.abstractmethod
    def pictures(self, field: Any, folder: Any) -> None:
        """Writes the pictures of the trained field into `folder`."""

    def sampler(self, name: str | None = None, steps: int | None = None, **options: Any) -> Any:
        """A sampler of `jf.samplers` by its name; `"heun_flow"` with 10 steps by default.

        Args:
            name: One of `jf.samplers.names()`.
            steps: Its number of steps.
            **options: Those of the sampler, as `eta` and `shift`; `None` leaves one out.

        Raises `ValueError` for an unknown name, fewer steps than 1 or more than float32 has times, and options that
        the sampler does not take.
        """
        if steps is not None or name != "dpm_adaptive":  # which chooses its own
            steps = 10 if steps is None else steps
            check_integers(steps=(steps, 1, _MOST_STEPS))
        return jf.samplers.by_name("heun_flow" if name is None else name, steps, **options)

    def draw(
        self,
        field: Any,
        sampler: Any,
        n: int,
        *,
        seed: int = 0,
        stream: int = 0,
        label: Int[np.ndarray, " n"] | int | None = None,
        scale: float = 1.0,
        frames: bool = False,
    ) -> Float[np.ndarray, "..."]:
        """`n` draws `(n, *shape)`, or with `frames` their way from noise to data, `(n, steps + 1, *shape)`.

        Draws of images are cut to [-1, 1], where pixels are; their way is not.

        Args:
            field: The trained field.
            sampler: That of `jf.generate`; with `frames` one of fixed steps.
            n: The number of draws.
            seed: Draw `i` depends on the seed, the stream and on `i`.
            stream: Draws of one stream are independent of another's.
            label: The classes, or one for all; by default the classes in turn.
            scale: That of guidance, 1 for the plain conditional field.
            frames: Whether the way is wanted.

        Raises `ValueError` for a label out of range, a label or scale without classes, more draws than memory holds,
        and draws that diverge.
        """
        check_draws(self, n, seed)
        field, args, axes = self._conditioned(field, n, label, scale)
        key = jr.fold_in(jr.key(seed), stream)
        saveat = dfx.SaveAt(steps=True, t0=True) if frames else None
        solution = jf.generate(
            field, key, n, self.shape, sampler, args=args, args_in_axes=axes, saveat=saveat, batch_size=_BATCH
        )
        if failed := int(np.sum(solution.status != 0)):
            raise ValueError(
                f"Draws must be finite. Got {failed} of {n} diverged: take more steps or a smaller scale, "
                "or train longer."
            )
        if frames:
            return np.asarray(solution.xs)
        return np.clip(solution.x, -1, 1) if len(self.shape) == 3 else np.asarray(solution.x)

    def _conditioned(self, field, n, label, scale):
        """The field to sample, its condition, and the axes of that."""
        if self.num_classes is None:
            if label is not None or scale != 1:
                raise ValueError(
                    "A label or a scale must go with a recipe with classes. Got one without: leave both out."
                )
            return field, None, None
        label = np.arange(n) % self.num_classes if label is None else np.broadcast_to(np.asarray(label), (n,))
        if label.min() < 0 or label.max() >= self.num_classes:
            bad = label.min() if label.min() < 0 else label.max()
            raise ValueError(f"A label must be one of 0 to {self.num_classes - 1}. Got {bad}.")
        if not np.isfinite(scale):
            raise ValueError(f"A guidance scale must be a finite number. Got {scale}.")
        if scale == 1:
            return field, label.astype(np.int32), 0
        if isinstance(field, jf.FlowMap):
            raise ValueError(
                f"A flow map must be drawn from at the scale that it was trained at, here 1. Got scale = {scale:g}: "
                "leave it out, or take a recipe of a field, as digits."
            )
        args = jf.Args(label.astype(np.int32), scale=float(scale))
        return jf.Guided(field, self.num_classes), args, jf.Args(0, scale=None)


class AbstractMapRecipe(AbstractRecipe):
    """A recipe of a flow map, drawn from by jumps."""

    def sampler(self, name=None, steps=None, **options):
        """By default two jumps, of one call each."""
        if name is not None or any(value is not None for value in options.values()):
            return super().sampler(name, steps, **options)
        return jumps(2 if steps is None else steps)


def jumps(steps: int) -> jf.FixedSteps:
    """So many jumps of a flow map, of equal length: one call of the network each."""
    check_integers(steps=(steps, 1, _MOST_STEPS))
    return jf.FixedSteps(jf.UniformGrid(steps), jf.Jump(), end="stop")


def check_options(recipe: Any) -> None:
    """Raises `ValueError` where an option of a recipe is out of its range, or no memory holds it."""
    for option in dataclasses.fields(recipe):
        value = getattr(recipe, option.name)
        if isinstance(option.default, int) and not isinstance(option.default, bool):
            least, most = (0, _MOST_SEED) if option.name == "seed" else (1, _MOST)
            check_integers(**{option.name: (value, least, most)})
        elif isinstance(option.default, tuple):
            for part in value:
                check_integers(**{f"Each of {option.name}": (part, 1, _MOST)})
    check_memory(f"A batch of {recipe.batch_size}", recipe.batch_size * math.prod(recipe.shape))
    if not 0 < recipe.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive. Got {recipe.learning_rate}.")
    if not 0 <= getattr(recipe, "drop", 0.0) <= 1:
        raise ValueError(f"drop must be a share of the labels, in [0, 1]. Got {recipe.drop}.")


def check_draws(recipe: AbstractRecipe, num: int, seed: int) -> None:
    """Raises `ValueError` for a number of draws, or a seed, that is out of range."""
    check_integers(num=(num, 1, _MOST), seed=(seed, 0, _MOST_SEED))
    check_memory(f"{num} draws", num * math.prod(recipe.shape))


def check_integers(**values: tuple[Any, int, int]) -> None:
    """Raises `ValueError` where a value is no integer from its least to its most: `name=(value, least, most)`."""
    for name, (value, least, most) in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} must be an integer. Got {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}. Got {value}.")
        if value > most:
            raise ValueError(f"{name} must be at most {most}. Got {_shown(value)}.")


def check_memory(what: str, numbers: int) -> None:
    """Raises `ValueError` where so many numbers of float32 are more than the memory of the machine."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    memory = math.prod(map(os.sysconf, names)) if hasattr(os, "sysconf") else math.inf
    if 4 * numbers > memory:
        raise ValueError(
            f"Memory must hold what is trained and drawn, here {memory / 2**30:.3g} GiB. Got: {what} "
            f"take {4 * numbers / 2**30:.3g} GiB at least; take fewer."
        )


def _shown(value: int) -> str:
    """A number, shortened where it has many digits."""
    return str(value) if value < 10**30 else "one of more than 30 digits"
