"""Fields: networks that know their path, and so give velocity, data, noise and score."""

import abc
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Int, PyTree

from ._args import bare
from ._event import cast_like, combine
from ._kinds import check_kinds
from ._path import AbstractAffinePath, AbstractPath
from ._prediction import Prediction, Row, Target, as_prediction, given, heads, prediction_row
from ._source import noise_map, precision
from ._trainable import frozen
from ._types import Event, Noun, PRNGKey, Time
from ._validate import as_array, concrete, parameter, scalar_time, shown


class AbstractField(Noun):
    """What samplers, losses and likelihoods take: a path, and predictions along it.

    Only `predict` is abstract. Every method takes one example: `t` a scalar, `x` the state, `args` the condition (any
    pytree, or `Args`).

    ```python
    class Still(jf.AbstractField):  # every prediction from one of the data
        path: jf.AbstractAffinePath
        predicts = "data"

        def predict(self, targets, t, x, args=None):
            return jf.given(self.path, t, x, (jnp.zeros_like(x),), ("data",), targets, args)

    assert (Still(jf.CondOT()).velocity(0.5, jnp.ones(2)) == -2).all()
    ```
    """

    path: eqx.AbstractVar[AbstractPath]
    predicts: eqx.AbstractVar[Prediction | tuple[Prediction, ...]]
    """What it gives without conversion: a prediction, or a tuple of them for several heads. The loss regresses it."""

    @abc.abstractmethod
    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        """The targets (names, predictions or rows) from one evaluation."""

    def conditional(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> PyTree:
        """What training regresses, `predicts`, with `args` as in `predict`; `key` is for a network that draws.

        By default `predict`, without the key.
        """
        values = self.predict(heads(self.predicts), t, x, args)
        return values if isinstance(self.predicts, tuple) else values[0]

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        """Network evaluations that one call costs: a Python number, or an array where that depends on the time `t`.

        By default 1.
        """
        return 1

    def recommended(self, nfe: int, args: Any = None) -> PyTree:
        """The field's own default sampler; by default `None`, that of its path."""
        return None

    @property
    def sources(self) -> tuple[Prediction, ...]:
        """The predictions from which `predict` computes all others; by default the heads.

        At an end of time one of them may not determine the others: at t = 0 the noise says nothing of the data. A
        sampler does not evaluate the field there. It raises, or it ends with the data prediction.
        """
        return self.predicts if isinstance(self.predicts, tuple) else (self.predicts,)

    def undefined(self, t: float) -> str | None:
        """The reason, in words, why the field has no value at the end `t`, 0.0 or 1.0; by default `None`: it has one.

        A sampler that would evaluate there raises with these words. So a grid must start later, or end earlier.
        """
        return None

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`u_t(x)`, the drift of the probability-flow ODE; `alpha' data + sigma' noise` on an affine path."""
        return self.predict(("velocity",), t, x, args)[0]

    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`E[x1 | x_t = x]`, the denoiser."""
        return self.predict(("data",), t, x, args)[0]

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`E[x0 | x_t = x]`."""
        return self.predict(("noise",), t, x, args)[0]

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`grad log p_t(x)`; `-noise / sigma` for white noise that is independent of the data."""
        return self.predict(("score",), t, x, args)[0]


class Field(AbstractField):
    """A network that knows its path: `Field(net, path, predicts)`.

    `net(t, x, args)` takes one example and returns an output of the shape of `x`; it may be a flax NNX module,
    an equinox module, a `jax.tree_util.Partial` of a function and its parameters, or any other callable pytree. With
    several heads, `predicts` a tuple of names, it returns as many outputs. Along a path whose source fills a subspace
    (centred clouds, padded events) its predictions are taken within that.

    ```python
    field = jf.Field(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    assert field.velocity(0.5, jnp.zeros(2)).shape == (2,)
    ```
    """

    net: Callable[..., PyTree]
    path: AbstractPath
    predicts: Prediction | tuple[Prediction, ...] = eqx.field(static=True)
    draws: bool = eqx.field(static=True)

    def __init__(
        self,
        net: Callable[..., PyTree],
        path: AbstractPath,
        predicts: Prediction | tuple[Prediction, ...],
        *,
        draws: bool = False,
    ):
        """Makes a field of a network.

        Args:
            net: The network, `net(t, x, args)`.
            path: The path it is trained along.
            predicts: What it outputs.
            draws: Whether it draws, as dropout does: then training calls `net(t, x, args, key=key)`, and samplers
                `net(t, x, args)`.

        Raises `ValueError` for an unknown prediction, `TypeError` where `path` is not a path, or the network does not
        take these arguments.
        """
        self.net, self.path, self.predicts, self.draws = net, path, predicts, draws

    def __check_init__(self):
        heads(self.predicts)
        check_net(self.net, self.draws)

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        t, x = scalar_time(t), jtu.tree_map(lambda leaf: as_array(leaf, "A state"), x)
        with one_example(self.net, t, x, args):
            value = self.net(t, x, bare(args))
        return given(self.path, t, x, self._outputs(value, x), heads(self.predicts), targets, args)

    def conditional(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> PyTree:
        t, extra = scalar_time(t), {"key": key} if self.draws else {}
        with one_example(self.net, t, x, args, **extra):
            value = self.net(t, x, bare(args), **extra)
        values = self._outputs(value, x)
        return values if isinstance(self.predicts, tuple) else values[0]

    def _outputs(self, value, x):
        """The outputs of the heads, checked."""
        own, values = heads(self.predicts), value if isinstance(self.predicts, tuple) else (value,)
        if not isinstance(values, (tuple, list)) or len(values) != len(own):
            raise ValueError(
                f"A network of {len(own)} heads must return a tuple of {len(own)} outputs. Got "
                f"{len(values) if isinstance(values, (tuple, list)) else type(values).__name__}."
            )
        return tuple(head.output(v, x) for head, v in zip(own, values, strict=True))


class Preconditioned(AbstractField):
    """A network behind the scalings of EDM, along any affine path; it predicts the data.

    `data = c_skip x + c_out net(c_noise, c_in x, args)`, with `V = alpha^2 sigma_data^2 + sigma^2`,
    `c_in = V^(-1/2)`, `c_skip = alpha sigma_data^2 / V`, `c_out = sigma sigma_data V^(-1/2)`: the network's
    input and target have unit variance. The network's time is `c_noise(t)`: by default `-log_snr / 8`, which
    is EDM's `log(sigma) / 4`, where the path's log-SNR is finite at both ends, else the angle
    `atan(sigma / alpha)`.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 7 and table 1, for `alpha = 1`.

    ```python
    field = jf.Preconditioned(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.VE(), sigma_data=0.5)
    assert field.data(0.5, jnp.zeros(2)).shape == (2,)
    ```
    """

    net: Callable[..., PyTree]
    path: AbstractAffinePath
    draws: bool = eqx.field(static=True)
    sigma_data: Array = frozen()
    c_noise: Callable[[Array], ArrayLike] | None = frozen()
    predicts: ClassVar[Prediction] = "data"

    def __init__(
        self,
        net: Callable[..., PyTree],
        path: AbstractAffinePath,
        sigma_data: ArrayLike,
        c_noise: Callable[[Array], ArrayLike] | None = None,
        *,
        draws: bool = False,
    ):
        """Makes a field of a network.

        Args:
            net: The network, `net(c_noise, c_in x, args)`.
            path: Its path.
            sigma_data: The standard deviation of the data.
            c_noise: A function of the time in place of the default.
            draws: As in `Field`.
        """
        self.net, self.path, self.c_noise, self.draws = net, path, c_noise, draws
        self.sigma_data = parameter(sigma_data, "sigma_data")

    def __check_init__(self):
        check_affine(self.path, "A preconditioned field")
        check_net(self.net, self.draws)

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        return given(self.path, t, x, (self._data(t, x, args),), ("data",), targets, args)

    def conditional(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> PyTree:
        return self._data(t, x, args, **({"key": key} if self.draws else {}))

    def _data(self, t, x, args, **extra):
        t = scalar_time(t)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        spread = self.sigma_data.astype(t.dtype)
        variance = (alpha * spread) ** 2 + sigma**2
        scaled = combine((jax.lax.rsqrt(variance), x))
        time = self._net_time(t, alpha, sigma)
        with one_example(self.net, time, scaled, args, **extra):
            out = cast_like(self.net(time, scaled, bare(args), **extra), x, "A network's output")
        return combine((alpha * spread**2 / variance, x), (sigma * spread * jax.lax.rsqrt(variance), out))

    def _net_time(self, t, alpha, sigma):
        if self.c_noise is not None:
            return scalar_time(self.c_noise(t))
        if self.path.ends_at_data or self.path.starts_at_noise:
            return jnp.arctan2(sigma, alpha)
        return -self.path.log_snr(t) / 8


def check_net(net: Any, draws: bool) -> None:
    """Raises `TypeError` for a network that does not take the arguments of its field."""
    how = " and net(t, x, args, key=key), for it draws" if draws is True else ""
    try:
        for extra in ({}, {"key": None}) if draws is True else ({},):
            inspect.signature(net).bind(None, None, None, **extra)
    except TypeError as error:
        raise TypeError(
            f"A field's network must be callable as net(t, x, args){how}. Got {type(net).__name__}: {error}. One that "
            "draws, as dropout does, has an argument key=None, and draws=True in its field."
        ) from None
    except ValueError:
        pass  # it has no signature


@contextlib.contextmanager
def one_example(net: Any, t: Any, x: PyTree, args: Any, **extra: Any) -> Iterator[None]:
    """What a network is called in; raises `ValueError` where it fails on one example and takes a batch."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        many = []
        for shape in ((1,), (1, 1)):  # the batch of this example
            with contextlib.suppress(Exception):
                batch = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], (x, bare(args)))
                many += jtu.tree_leaves(eqx.filter_eval_shape(net, t.reshape(shape), *batch, **extra))
        if not many or any(not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.shape[:1] != (1,) for leaf in many):
            raise
        raise ValueError(
            "A network must take one example, t a scalar and x without a batch axis: many go through jax.vmap. Got "
            f"{type(net).__name__}, which fails on an example and takes a batch of it: write it for one, with t[None] "
            "for t[:, None], or wrap it in a module that returns net(t[None], x[None], args)[0]."
        ) from error


SLACK = 1e-3
"""By how much rounding may carry a log-SNR over the end of a path."""


class _Rematched(AbstractField):
    """A field of one path as a field of another; see `change_path`."""

    field: AbstractField
    path: AbstractAffinePath
    predicts: ClassVar[Prediction] = "data"

    @property
    def _own(self) -> Any:
        """The field's own path, an affine one."""
        return self.field.path

    def own_time(self, t: Time) -> Array:
        """The time of the field's own path with the signal-to-noise ratio of `t`, NaN where that path has none.

        Raises `ValueError` where this is known.
        """
        (time, low, high), own = self._matched(t), self._own
        known = concrete(~jnp.isnan(time))
        if known is not None and not known and concrete(t) is not None:
            start, stop = (float(self.path.log_snr_inverse(end)) for end in (low, high))
            raise ValueError(
                f"The signal-to-noise ratios of both paths must overlap: a field along {type(own).__name__}, taken to "
                f"{type(self.path).__name__}, is known from t = {start:.6g} to t = {stop:.6g} (log-SNR from "
                f"{float(low):.4g} to {float(high):.4g}). Got t = {float(jnp.asarray(t)):.6g}: start and stop there, "
                "or let the last step be the data prediction, end='denoise'."
            )
        return time

    def _matched(self, t):
        """`own_time`, NaN where there is none, and the log-SNR of the own path's ends."""
        own, log_snr = self._own, self.path.log_snr(t)
        low, high = (own.log_snr(jnp.asarray(end, log_snr.dtype)) for end in (0.0, 1.0))
        inside = (log_snr >= low - SLACK) & (log_snr <= high + SLACK)
        return jnp.where(inside, own.log_snr_inverse(log_snr), jnp.nan), low, high

    def _source(self, t, x):
        """Time and state of the field's own path with the signal-to-noise ratio of `(t, x)`."""
        t = scalar_time(t)
        path, t_own = self._own, self.own_time(t)
        own = jnp.hypot(path.alpha(t_own), path.sigma(t_own))
        return t_own, combine((own / jnp.hypot(self.path.alpha(t), self.path.sigma(t)), x))

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        def asked(target: Any):  # data and noise are the same along both paths, so a row is too
            alike = isinstance(target, Row) or as_prediction(target).name in ("data", "noise")
            return target if alike else prediction_row(self.path, target, t)  # pyright: ignore[reportArgumentType]

        def answer(target, value):
            named = None if isinstance(target, Row) else as_prediction(target).name
            return precision(noise_map(self.path.source), value, args) if named == "score" else value

        values = self.field.predict(tuple(map(asked, targets)), *self._source(t, x), args)
        return tuple(map(answer, targets, values))

    def conditional(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> PyTree:
        t, x = self._source(t, x)
        value, predicts = self.field.conditional(t, x, args, key), self.field.predicts
        values, own = (value, predicts) if isinstance(predicts, tuple) else ((value,), (predicts,))
        return given(self.field.path, t, x, values, own, ("data",), args)[0]

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return self.field.evaluations(args, None if t is None else self._matched(t)[0])

    @property
    def sources(self) -> tuple[Prediction, ...]:
        return tuple(dict.fromkeys(("data", *self.field.sources)))

    def undefined(self, t: float) -> str | None:
        own = self.field.path
        beyond = (
            self.path.starts_at_noise and not own.starts_at_noise
            if t == 0
            else (self.path.ends_at_data and not own.ends_at_data)
        )
        if beyond:
            return f"{type(own).__name__} has no such signal-to-noise ratio as {type(self.path).__name__} has there"
        return self.field.undefined(t)


def change_path(field: AbstractField, path: AbstractAffinePath) -> AbstractField:
    """A field trained along one affine path as a field along another.

    At equal signal-to-noise ratio the states of two paths differ by a factor, so
    `data(t, x) = field.data(t', c x)` with `log_snr'(t') = log_snr(t)` and `c` the ratio of the norms of
    `(alpha, sigma)`; exact where the signal-to-noise ratios of the two paths overlap. Outside, as at t = 0 for a field
    along VE taken to CondOT, it raises `ValueError` where the time is known, and is NaN where it is traced.

    Source: Karras et al. 2022, arXiv:2206.00364, section 4; Kingma et al. 2021, arXiv:2107.00630, section 5.1.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    moved = jf.change_path(world.field(jf.CondOT()), jf.VP())
    exact = world.field(jf.VP())
    assert jnp.allclose(moved.data(0.7, jnp.ones(2)), exact.data(0.7, jnp.ones(2)), atol=1e-5)
    ```
    """
    check_kinds(change_path, locals())
    check_affine(path, "change_path")
    check_affine(field.path, "change_path")
    if jtu.tree_structure(field.path.source) != jtu.tree_structure(path.source):
        raise ValueError(
            "Both paths must have the same source, since the field knows the noise of one source. Got "
            f"{field.path.source!r} and {path.source!r}: pass source= to the new path."
        )
    return _Rematched(field, path)  # pyright: ignore[reportArgumentType]


def check_affine(path: Any, what: str) -> None:
    """Raises `ValueError` for what has no alpha and sigma."""
    if not isinstance(path, AbstractAffinePath):
        raise ValueError(f"{what} must have an affine path, with alpha and sigma. Got {shown(path)}.")


class AbstractWrappedField(AbstractField):
    """A field inside another of the same heads, cost and ends: only `predict` is left."""

    field: AbstractField

    @property
    def path(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.field.path

    @property
    def predicts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.field.predicts

    @property
    def sources(self):
        return self.field.sources

    def evaluations(self, args=None, t=None):
        return self.field.evaluations(args, t)

    def undefined(self, t):
        return self.field.undefined(t)
