"""The loop of a fixed grid: a scan over the steps of a stepper."""

from typing import Any

import diffrax as dfx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._brownian import Recorded
from .._event import all_finite, row
from .._types import PRNGKey, Solution
from .._validate import check_key
from .count import levy_kinds
from .solver_rule import SolverRule
from .stepper import Stepper


def run_grid(
    stepper: Stepper,
    x0: PyTree,
    args: Any,
    *,
    key: PRNGKey | None = None,
    recorded: Recorded | None = None,
    saveat: dfx.SaveAt | None = None,
    visible: Any = None,
    unroll: bool = False,
) -> Solution:
    """Carries `x0` along the grid, step by step. The noise is `recorded`, or drawn from `key`.

    `visible` maps a state to what `saveat.fn` is given. `unroll` writes out the steps of an ODE without a loop. That
    takes longer to compile, but on CPUs the gradient through a convolution is much slower inside a loop.
    """
    every, with_start, fn = saves(saveat, visible)
    noise, block = _noise(stepper, x0, args, key, recorded)

    def save(t, x):
        return fn(t, x, args) if every else None

    def counted(x, count):
        return jnp.where(count < 0, count, jnp.where(all_finite(x), count + 1, ~count))

    # The number of finite states so far, inverted bit by bit after one that is not. A step counts the state that it
    # starts from: in a check of its result XLA would compute the whole step once more.
    def body(carry, slices):
        x, state, count = carry
        at, t1, normals = slices
        count = counted(x, count)
        x, state = stepper.step(at, x, state, normals, args)
        return (x, state, count), save(t1, x)

    # The backward pass recomputes each step. So the forward pass keeps one state a step, and no stages.
    body = jax.checkpoint(body, prevent_cse=False)
    carry, saved = (x0, stepper.init(x0, args), jnp.zeros((), jnp.int32)), None
    if stepper.steps:
        steps, n = (stepper.rows, stepper.times[1 : stepper.steps + 1]), stepper.steps
        if callable(noise):
            carry, saved = _scan_blocks(body, carry, steps, n, noise, block)
        else:
            carry, saved = lax.scan(body, carry, (*steps, row(noise, slice(n))), unroll=unroll if noise is None else 1)
    x, _, count = carry
    count = counted(x, count)
    if stepper.end == "denoise":
        x = stepper.finish(x, args)
        count = counted(x, count)
        last = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], save(stepper.times[-1], x))
        saved = last if saved is None else jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), saved, last)
    ts, xs = _saved(stepper.times, saved, every, with_start, lambda: fn(stepper.times[0], x0, args))
    nfe = stepper.nfe(x0, args)
    nfe = None if nfe is None else jnp.asarray(nfe, jnp.int32)
    t = stepper.times[jnp.maximum(jnp.maximum(count, ~count) - 1, 0)]
    return Solution(x=x, nfe=nfe, status=(count < 0).astype(jnp.int32), t=t, ts=ts, xs=xs)


def saves(saveat: dfx.SaveAt | None, visible: Any = None) -> tuple[int, bool, Any]:
    """What a fixed grid saves: after every how many steps (0 for never), whether the start too, and a function."""
    if saveat is None:
        return 0, False, lambda t, x, args: x
    subs = saveat.subs
    if saveat.dense or not isinstance(subs, dfx.SubSaveAt) or subs.ts is not None or subs.t1:
        raise ValueError(
            "On a fixed grid saveat must save the steps, diffrax.SaveAt(t0=True, steps=True). The end is the "
            "solution's t and x without it; other times or dense output must be in the grid, or from AdaptiveSteps."
        )
    see = (lambda x: x) if visible is None else visible
    return int(subs.steps), bool(subs.t0), lambda t, x, args: subs.fn(t, see(x), args)


def _saved(times, saved, every, with_start, start):
    """The saved times and states, with the start if it was wanted."""
    if not (every or with_start):
        return None, None
    keep = slice(every - 1, None, every) if every else slice(0, 0)
    ts, xs = times[1:][keep], row(saved, keep) if every else None
    if with_start:
        first = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], start())
        ts = jnp.concatenate([times[:1], ts])
        xs = first if xs is None else jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), first, xs)
    return ts, xs


def _noise(stepper, x0, args, key, recorded):
    """The noise of the grid, and how many steps share a key.

    The noise is `None`, recorded normals, or a function from the index of a block of steps to its normals.
    """
    rule = stepper.rule
    if not stepper.noisy or not stepper.steps:
        return None, 1
    like = rule.noise_like(stepper.field, stepper.row(0), x0, args)
    if recorded is not None:
        check_recorded(recorded, stepper.n, like, rule)
        normals = recorded.normals
        return ((normals,) if isinstance(rule, SolverRule) else normals), 1
    check_key(key, "A sampler with noise")
    block = rule.block(like)
    return (lambda index: rule.draw(jr.fold_in(key, index), block, like)), block


def _scan_blocks(body, carry, steps, n, draw, block):
    """The scan over blocks of steps. Each block draws its noise from one key.

    The noise of one block is in memory at a time, so memory does not grow with the number of steps.
    """
    full, rest = divmod(n, block)

    @jax.checkpoint
    def outer(carry, slices):
        index, inner = slices
        noise = draw(index)
        if block == 1:
            carry, saved = body(carry, (*row(inner, 0), row(noise, 0)))
            return carry, jtu.tree_map(lambda leaf: leaf[None], saved)
        return lax.scan(body, carry, (*inner, noise))

    parts = []
    if full:
        head = jtu.tree_map(lambda leaf: leaf[: full * block].reshape(full, block, *leaf.shape[1:]), steps)
        carry, saved = lax.scan(outer, carry, (jnp.arange(full), head))
        parts.append(jtu.tree_map(lambda leaf: leaf.reshape(full * block, *leaf.shape[2:]), saved))
    if rest:
        noise = row(draw(full), slice(0, rest))
        carry, saved = lax.scan(body, carry, (*row(steps, slice(full * block, n)), noise))
        parts.append(saved)
    return carry, jtu.tree_map(lambda *leaves: jnp.concatenate(leaves), *parts)


def check_recorded(recorded: Recorded, n: int, like: PyTree, rule: Any) -> None:
    """Raises `ValueError` unless recorded normals have the structure and the shapes that the loop would draw."""
    if isinstance(rule, SolverRule) and levy_kinds(rule.solver) > 1:
        raise ValueError(
            f"Recorded noise must be all that the solver takes: it holds increments, and {type(rule.solver).__name__} "
            "takes Lévy areas, or times inside a step. Pass key=, or brownian=jflow.brownian_tree(..., levy_area=...)."
        )
    structure = jtu.tree_structure(like)
    if jtu.tree_structure(recorded.normals) != structure:
        raise ValueError(f"Recorded noise must have the structure of the noise, {structure}. Got another.")
    for normals, leaf in zip(jtu.tree_leaves(recorded.normals), jtu.tree_leaves(like), strict=True):
        if jnp.shape(normals) != (n, *leaf.shape):
            raise ValueError(
                f"Recorded noise must be one normal event for each step: {n} for this grid, of shape {leaf.shape} "
                f"each. Got an array of shape {jnp.shape(normals)}, where {(n, *leaf.shape)} is due."
            )
