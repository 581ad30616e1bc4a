"""Independent references for the tests: paths, clocks, exact fields of Gaussians and mixtures, counted networks."""

import contextlib
import functools as ft
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jflow as jf

PATHS = {
    "CondOT": jf.CondOT(),
    "Cosine": jf.Cosine(),
    "LinearVP": jf.LinearVP(),
    "VP": jf.VP(),
    "VE": jf.VE(),
    "root": jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t)),
    # sigma and sigma' to the last digits of float32 at both ends
    "quadratic": jf.CustomPath(lambda t: t**2, lambda t: jnp.where(t < 0.5, 1 - t**2, (1 - t) * (1 + t))),
}
CLOCKS = {
    "path": jf.PathClock(),
    "sigma": jf.SigmaClock(),
    "theta": jf.ThetaClock(),
    "ratio": jf.RatioClock(),
    "angle": jf.AngleClock(),
}
PREDICTIONS = ("velocity", "data", "noise", "score", "v")
MIX1 = (np.array([0.3, 0.7]), np.array([[-2.0], [1.0]]), np.array([0.5, 0.8]))  # weights, means, stds


def over_paths(fn, *args, names=tuple(PATHS)):
    """`fn(path, *args)` for every path, mapped over the leading axes of `args`: one compilation for all of them."""
    mapped = {name: jax.vmap(ft.partial(fn, PATHS[name])) for name in names}
    return jax.jit(lambda *batch: {name: each(*batch) for name, each in mapped.items()})(*args)


def weights_of(row):
    """`(s, a, b)` of a row, with zeros for what is absent."""
    return [0.0 if weight is None else weight for weight in row]


def schedule(name, t):
    """`alpha, sigma, alpha', sigma'` of a path, written out a second time in numpy; interior times."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s = 1 - t
        low = float(PATHS["VP"].beta_min)  # 0.1 as its type rounds it
        rate = s * (20 - low) / 2 + low / 2
        vp = np.exp(-(s**2) * (20 - low) / 4 - s * low / 2)
        ratio = np.log(float(PATHS["VE"].sigma_min) / 80)
        return {
            "CondOT": lambda: (t, 1 - t, 1 + 0 * t, -1 + 0 * t),
            "Cosine": lambda: (
                np.sin(np.pi * t / 2),
                np.cos(np.pi * t / 2),
                np.pi / 2 * np.cos(np.pi * t / 2),
                -np.pi / 2 * np.sin(np.pi * t / 2),
            ),
            "LinearVP": lambda: (t, np.sqrt(1 - t**2), 1 + 0 * t, -t / np.sqrt(1 - t**2)),
            "VP": lambda: (vp, np.sqrt(1 - vp**2), vp * rate, -(vp**2) * rate / np.sqrt(1 - vp**2)),
            "VE": lambda: (1 + 0 * t, 80 * np.exp(t * ratio), 0 * t, 80 * ratio * np.exp(t * ratio)),
            "root": lambda: (t, np.sqrt(1 - t), 1 + 0 * t, -0.5 / np.sqrt(1 - t)),
            "quadratic": lambda: (t**2, 1 - t**2, 2 * t, -2 * t),
        }[name]()


class ExactNet(eqx.Module):
    """The exact prediction for a mixture of isotropic Gaussians: posterior averages over the components."""

    path: jf.AbstractAffinePath
    predicts: str = eqx.field(static=True)
    weights: Any
    means: Any  # (components, *event), or (components,) for the same mean everywhere
    stds: Any

    def __call__(self, t, x, args):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)

        def along(v):
            return v.reshape(-1, *[1] * x.ndim)

        means, stds = self.means.astype(x.dtype), self.stds.astype(x.dtype)
        means = means if means.ndim > 1 else along(means)

        variance = (alpha * stds) ** 2 + sigma**2
        gap = x[None] - alpha * means
        square = (gap.reshape(len(means), -1) ** 2).sum(1)
        logits = jnp.log(self.weights.astype(x.dtype)) - square / (2 * variance) - x.size / 2 * jnp.log(variance)
        r = along(jax.nn.softmax(logits))
        noise = (r * sigma * gap / along(variance)).sum(0)
        data = (r * (means + along(alpha * stds**2 / variance) * gap)).sum(0)
        if self.predicts == "velocity":
            s, a, b = self.path.velocity_row(t)
            return (a * data + b * noise) / s
        return {
            "data": data,
            "noise": noise,
            "score": -(r * gap / along(variance)).sum(0),
            "v": alpha * noise - sigma * data,
        }[self.predicts]


def mixture(path, weights, means, stds, predicts="velocity"):
    """The exact field of a mixture of isotropic Gaussians."""
    return jf.Field(ExactNet(path, predicts, *(np.asarray(v, float) for v in (weights, means, stds))), path, predicts)


def gaussian(path, mean=1.0, std=0.5, predicts="velocity"):
    """The exact field of `N(mean, std^2 I)`, for events of any shape."""
    return mixture(path, [1.0], [mean], [std], predicts)


class Counter:
    """A callable that counts, on the host, how often the program runs it; `traces` counts how often Python does."""

    def __init__(self, fn):
        self.fn, self.calls, self.traces = fn, 0, 0

    def __call__(self, t, x, args):
        self.traces += 1
        leaves = [jnp.ravel(leaf)[0] for leaf in jax.tree.leaves((t, x, args))]
        jax.debug.callback(self._count, *leaves)  # once for each example, under vmap too
        return self.fn(t, x, args)

    def _count(self, *leaves):
        self.calls += 1

    def take(self):
        """The calls since the last time."""
        jax.effects_barrier()
        calls, self.calls = self.calls, 0
        return calls


@contextlib.contextmanager
def unchecked():
    """Without run-time type checking: what a user meets, who does not switch it on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# what such a thread writes, piece by piece
_LATE = re.compile(
    r"Traceback \(most recent call last\):|raise RuntimeError\('Event loop is closed'\)|RuntimeError|"
    r"Event loop is closed|self\._check_closed\(\)|File \"|[^\"\s]*asyncio/base_events\.py|\", line |\b\d+\b|, in |"
    r"call_soon_threadsafe|_check_closed|: "
)


def spoken(stderr):
    """What a process says, without what threads of orbax say of a loop that was closed before they ended: whether they
    are that late is chance, and so is where their words fall among the others, within a line too. Of any other
    traceback the places and the error stay.
    """
    lines = stderr.replace("jflow: ", "\njflow: ").splitlines()
    said = [line.strip() for line in lines if line.startswith("jflow: ") or _LATE.sub("", line).strip()]
    return "".join(line + "\n" for line in said)


def refuses(call, fragment, kind=ValueError):
    """Asserts that a call raises `kind` with a message that has the fragment, run-time type checking switched off."""
    try:
        with unchecked():
            call()
    except kind as error:
        assert re.search(fragment, str(error)), f"{fragment!r} is not in: {error}"
    else:
        raise AssertionError(f"nothing was refused where {fragment!r} was due")


def tiers(names, fast):
    """A list of cases of which those that are not named go to the slow tier."""
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow, id=name) for name in names]


def within(sample, mean, se, factor=4.0):
    """Whether a statistic is within `factor` standard errors."""
    return bool(np.all(np.abs(np.asarray(sample) - mean) <= factor * np.asarray(se)))
