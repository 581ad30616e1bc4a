"""Fields: networks that know their path, and so give velocity, data, noise and score."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Int, PyTree

from ._misc import cast_like, combine, concrete, parameter, scalar_time
from ._path import AbstractPath
from ._prediction import Prediction, Row, check_prediction, convert, prediction_row
from ._types import Event, Time


class AbstractField(eqx.Module):
    """What samplers, losses and likelihoods take: a path, and the four predictions along it.

    Every method takes one example: `t` a scalar, `x` the state, `args` the condition (any pytree).
    """

    path: eqx.AbstractVar[AbstractPath]
    predicts: eqx.AbstractVar[Prediction]

    @abc.abstractmethod
    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`u_t(x) = alpha' data + sigma' noise`, the drift of the probability-flow ODE."""

    @abc.abstractmethod
    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`E[x1 | x_t = x]`, the denoiser."""

    @abc.abstractmethod
    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`E[x0 | x_t = x]`."""

    @abc.abstractmethod
    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """`grad log p_t(x) = -noise / sigma`."""

    @abc.abstractmethod
    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        """Several quantities `s q = a data + b noise` at once, from one evaluation."""

    @abc.abstractmethod
    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        """Network evaluations one call costs: a Python number, or an array where that depends on the time `t`."""


class AbstractNetwork(AbstractField):
    """A field around something that gives one prediction; the others follow from it by `convert`."""

    @property
    def sources(self) -> tuple[Prediction, ...]:
        """The predictions that the others come from; each determines a right-hand side, or that is refused."""
        return (self.predicts,)

    @abc.abstractmethod
    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """The prediction `self.predicts`, of the shape and type of `x`."""

    @abc.abstractmethod
    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        """The prediction with `args` the bare condition, as in training."""

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return convert(self.path, t, x, self(t, x, args), self.predicts, "velocity")

    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return convert(self.path, t, x, self(t, x, args), self.predicts, "data")

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return convert(self.path, t, x, self(t, x, args), self.predicts, "noise")

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return convert(self.path, t, x, self(t, x, args), self.predicts, "score")

    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        value = self(t, x, args)
        return tuple(convert(self.path, t, x, value, self.predicts, row) for row in rows)

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return 1


class Field(AbstractNetwork):
    """A network that knows its path: `Field(net, path, predicts)`.

    `net(t, x, args)` takes one example and returns an output of the shape of `x`; it may be a flax NNX module,
    an equinox module, a `jax.tree_util.Partial` of a function and its parameters, or any other callable pytree.
    """

    net: Callable[..., Any]
    path: AbstractPath
    predicts: Prediction = eqx.field(static=True)

    def __init__(self, net: Callable[..., Any], path: AbstractPath, predicts: Prediction):
        """`net` the network; `path` the path it is trained along; `predicts` what it outputs.

        Raises `ValueError` for an unknown prediction, `TypeError` where `path` is no path.
        """
        self.net, self.path, self.predicts = net, path, predicts

    def __check_init__(self):
        check_prediction(self.predicts)
        _check_path(self.path)

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return cast_like(self.net(scalar_time(t), x, args), x, "A network's output")

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self(t, x, args)


class Preconditioned(AbstractNetwork):
    """A network behind the scalings of EDM, along any path; it predicts the data.

    `data = c_skip x + c_out net(c_noise, c_in x, args)`, with `V = alpha^2 sigma_data^2 + sigma^2`,
    `c_in = V^(-1/2)`, `c_skip = alpha sigma_data^2 / V`, `c_out = sigma sigma_data V^(-1/2)`: the network's
    input and target have unit variance. The network's time is `c_noise(t)`: by default `-log_snr / 8`, which
    is EDM's `log(sigma) / 4`, where the path's log-SNR is finite at both ends, else the angle
    `atan(sigma / alpha)`.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 7 and table 1, for `alpha = 1`.
    """

    net: Callable[..., Any]
    path: AbstractPath
    sigma_data: Array
    c_noise: Callable[[Any], Any] | None

    def __init__(
        self,
        net: Callable[..., Any],
        path: AbstractPath,
        sigma_data: ArrayLike,
        c_noise: Callable[[Any], Any] | None = None,
    ):
        """`net` the network; `path` its path; `sigma_data` the standard deviation of the data;
        `c_noise` a function of the time in place of the default.
        """
        self.net, self.path, self.c_noise = net, path, c_noise
        self.sigma_data = parameter(sigma_data, "sigma_data")

    def __check_init__(self):
        _check_path(self.path)

    @property
    def predicts(self) -> Prediction:
        return "data"

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        t = scalar_time(t)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        spread = self.sigma_data.astype(t.dtype)
        variance = (alpha * spread) ** 2 + sigma**2
        scaled = combine((jax.lax.rsqrt(variance), x))
        out = cast_like(self.net(self._net_time(t, alpha, sigma), scaled, args), x, "A network's output")
        return combine((alpha * spread**2 / variance, x), (sigma * spread * jax.lax.rsqrt(variance), out))

    def _net_time(self, t, alpha, sigma):
        if self.c_noise is not None:
            return scalar_time(self.c_noise(t))
        if self.path.ends_at_data or self.path.starts_at_noise:
            return jnp.arctan2(sigma, alpha)
        return -self.path.log_snr(t) / 8

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self(t, x, args)


SLACK = 1e-3
"""By how much rounding may carry a log-SNR over the end of a path."""


class _Rematched(AbstractNetwork):
    """A field of one path as a field of another; see `change_path`."""

    field: AbstractField
    path: AbstractPath

    def __init__(self, field: AbstractField, path: AbstractPath):
        self.field, self.path = field, path

    @property
    def predicts(self) -> Prediction:
        return "data"

    def own_time(self, t):
        """Time of the field's own path with the ratio of `t`: NaN where there is none, an error where that is known."""
        log_snr, own = self.path.log_snr(t), self.field.path
        low, high = (own.log_snr(jnp.asarray(end, jnp.result_type(log_snr))) for end in (0.0, 1.0))
        inside = (log_snr >= low - SLACK) & (log_snr <= high + SLACK)
        if (known := concrete(inside)) is not None and not known:
            start, stop = (float(jnp.clip(self.path.log_snr_inverse(bound), 0, 1)) for bound in (low, high))
            raise ValueError(
                f"A field along {type(own).__name__}, taken to {type(self.path).__name__}, is known where the "
                f"signal-to-noise ratios of the two overlap: from t = {start:.6g} to t = {stop:.6g} (log-SNR from "
                f"{float(low):.4g} to {float(high):.4g}). Got t = {float(t):.6g}: start and stop there, or let the "
                "last step be the data prediction, end='denoise'."
            )
        return jnp.where(inside, own.log_snr_inverse(log_snr), jnp.nan)

    def _source(self, t, x):
        """Time and state of the field's own path with the signal-to-noise ratio of `(t, x)`."""
        t = scalar_time(t)
        t_own = self.own_time(t)
        own = jnp.hypot(self.field.path.alpha(t_own), self.field.path.sigma(t_own))
        return t_own, combine((own / jnp.hypot(self.path.alpha(t), self.path.sigma(t)), x))

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.field.data(*self._source(t, x), args)

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        if not isinstance(self.field, AbstractNetwork):
            return self(t, x, args)
        t, x = self._source(t, x)
        return convert(self.field.path, t, x, self.field.conditional(t, x, args), self.field.predicts, "data")

    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        return self.field.mixed(rows, *self._source(t, x), args)

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.mixed((prediction_row(self.path, "velocity", t),), t, x, args)[0]

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.field.noise(*self._source(t, x), args)

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.mixed((prediction_row(self.path, "score", t),), t, x, args)[0]

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return self.field.evaluations(args, None if t is None else self.own_time(t))


def change_path(field: AbstractField, path: AbstractPath) -> AbstractField:
    """A field trained along one path as a field along another.

    At equal signal-to-noise ratio the states of two paths differ by a factor, so
    `data(t, x) = field.data(t', c x)` with `log_snr'(t') = log_snr(t)` and `c` the ratio of the norms of
    `(alpha, sigma)`; exact where the signal-to-noise ratios of the two paths overlap. Outside, as at t = 0 for a field
    along VE taken to CondOT, it raises `ValueError` where the time is known, and is NaN where it is traced.

    Source: Karras et al. 2022, arXiv:2206.00364, section 4; Kingma et al. 2021, arXiv:2107.00630, section 5.1.
    """
    _check_path(path)
    return _Rematched(field, path)


def check_overlap(field: AbstractField, t: Any) -> None:
    """Raises `ValueError` where a known time lies outside what is known of a field taken to another path."""
    if concrete(t) is None:
        return
    with jax.ensure_compile_time_eval():
        for node in jtu.tree_leaves(field, is_leaf=lambda node: isinstance(node, _Rematched)):
            if isinstance(node, _Rematched):
                check_overlap(node.field, node.own_time(jnp.asarray(t)))


def trainable(tree: PyTree) -> PyTree:
    """Which leaves are trained: a pytree of booleans with the structure of `tree`.

    True on the inexact arrays of the networks and on nothing else: paths, `sigma_data`, null conditions, classifiers
    and the weak field of a guided one never change. Gradient, optimiser and averages of weights all use this one
    function, as `equinox.partition(field, trainable(field))`.
    """
    if isinstance(tree, AbstractPath):
        return jtu.tree_map(lambda _: False, tree)
    if isinstance(tree, AbstractField):
        leaves, treedef = jtu.tree_flatten(tree, is_leaf=lambda node: node is not tree)
        names = _child_names(tree)
        flags = [
            trainable(leaf)
            if name == "net" or (isinstance(leaf, AbstractField) and name != "weak")
            else jtu.tree_map(lambda _: False, leaf)
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jtu.tree_unflatten(treedef, flags)

    def apart(node):
        return isinstance(node, (AbstractField, AbstractPath))

    return jtu.tree_map(
        lambda node: trainable(node) if apart(node) else eqx.is_inexact_array(node), tree, is_leaf=apart
    )


def _child_names(tree):
    """Names of the children of an equinox module, in the order of its flattening."""
    paths, _ = jtu.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    return [path[0].name for path, _ in paths]


def _check_path(path):
    if not isinstance(path, AbstractPath):
        raise TypeError(f"A field's path is a jflow path, as jflow.CondOT() or jflow.Path(alpha, sigma). Got {path!r}.")
