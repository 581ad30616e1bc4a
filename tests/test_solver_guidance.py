"""Guidance that needs the step or a memory: CFG++ and the momentum of adaptive projected guidance."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from references import Counter, refuses

import jflow as jf

GRID = np.array([0.0, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])
PATH = jf.CondOT()
START = np.array([0.3, -1.2, 0.8])


def net(t, x, y):
    return jnp.tanh(x * (1 + t) + y) + y * t


def prediction(t, x, y):
    return np.tanh(x * (1 + t) + y) + y * t


FIELD = jf.Field(net, PATH, "data")


@eqx.filter_jit
def carry(field, solver, scale, times, dtype, eta=None, noise=None):
    brownian = None if noise is None else jf.Recorded(noise)
    return jf.decode(
        field, START, args=(0.8, scale), times=times, solver=solver, end="stop", dtype=dtype, eta=eta, brownian=brownian
    )


def cfgpp(mu, grid=GRID):
    x = START
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        c, u = prediction(t, x, 0.8), prediction(t, x, -0.5)
        noise = (x - t * u) / (1 - t)
        x = s * (u + mu * (c - u)) + (1 - s) * noise
    return x


def weighted(mu):
    """DDIM, guided with the scale `mu/(1 - e^(-h))`."""
    x = START
    for t, s in zip(GRID[:-1], GRID[1:], strict=True):
        c, u = prediction(t, x, 0.8), prediction(t, x, -0.5)
        shrink = t * (1 - s) / ((1 - t) * s)  # e^(-h)
        d = u + mu / (1 - shrink) * (c - u)
        x = (1 - s) / (1 - t) * x + s * (1 - shrink) * d
    return x


def test_cfgpp_is_the_recursion_of_the_paper_and_a_scale_that_depends_on_the_step(x64):
    field = jf.Guided(FIELD, -0.5)
    for mu in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(weighted(mu), cfgpp(mu), rtol=1e-12)
        for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
            out = carry(field, jf.CFGpp(), jnp.asarray(mu), jnp.asarray(GRID), dtype)
            assert out.x.dtype == dtype and out.nfe == 2 * (len(GRID) - 1)
            np.testing.assert_allclose(out.x, cfgpp(mu), rtol=tolerance, atol=tolerance)
    full = np.append(GRID, 1.0)  # the last step is the data prediction, D_u + mu (D_c - D_u)
    out = jf.decode(field, START, args=(0.8, 0.6), times=full, solver=jf.CFGpp())
    np.testing.assert_allclose(out.x, cfgpp(0.6, full), rtol=1e-12)


def guided_momentum(w, beta, parallel, threshold, eta=0.0, noise=None, inside=(0.0, 2.0)):
    """The paper's loop with the frozen-data step of level `eta`."""
    x, running = START, 0.0
    for i, (t, s) in enumerate(zip(GRID[:-1], GRID[1:], strict=True)):
        c, u = prediction(t, x, 0.8), prediction(t, x, -0.5)
        d = c
        if inside[0] <= t < inside[1]:
            running = c - u + beta * running
            change = running * min(1, threshold / np.linalg.norm(running))
            along = change @ c / (c @ c) * c
            d = c + (w - 1) * (change - along + parallel * along)
        shrink = t * (1 - s) / ((1 - t) * s)
        x = (1 - s) / (1 - t) * shrink**eta * x + s * (1 - shrink ** (1 + eta)) * d
        if noise is not None:
            x = x + (1 - s) * np.sqrt(1 - shrink ** (2 * eta)) * noise[i]
    return x


def test_momentum_is_the_recursion_of_the_paper(x64):
    noise = np.random.default_rng(0).normal(size=(len(GRID) - 1, 3))
    clocked = {"times": jnp.asarray(GRID), "dtype": "float64"}
    for inside in (None, (0.1, 0.7)):
        field = jf.Guided(FIELD, -0.5, rule=jf.APG(0.2, 1.1), interval=inside)
        window = {} if inside is None else {"inside": inside}
        for beta in (-0.5, 0.4):
            solver = jf.GuidanceMomentum(beta, jf.DPMpp(order=1))
            out = carry(field, solver, jnp.asarray(4.0), **clocked)
            np.testing.assert_allclose(out.x, guided_momentum(4.0, beta, 0.2, 1.1, **window), rtol=1e-12)
            assert out.nfe == (2 * 11 if inside is None else 11 + 6)
        noisy = carry(field, jf.GuidanceMomentum(-0.5), jnp.asarray(4.0), eta=jnp.asarray(0.7), noise=noise, **clocked)
        want = guided_momentum(4.0, -0.5, 0.2, 1.1, eta=0.7, noise=noise, **window)
        np.testing.assert_allclose(noisy.x, want, rtol=1e-12)


def test_without_momentum_it_is_the_other_solver_through_any_wrapper(x64):
    times = jnp.asarray(GRID)
    guided = jf.Guided(jf.Field(net, PATH, "velocity"), -0.5, rule=jf.APG(0.2, 1.1), interval=(0.1, 0.7))
    wrapped = jf.change_path(jf.Thresholded(guided, 90.0), jf.Cosine())
    solver = jf.DPMpp(2)
    plain = carry(wrapped, solver, jnp.asarray(3.0), times, "float64")
    still = carry(wrapped, jf.GuidanceMomentum(0.0, solver), jnp.asarray(3.0), times, "float64")
    np.testing.assert_allclose(still.x, plain.x, rtol=1e-13)
    assert still.nfe == plain.nfe
    moved = carry(wrapped, jf.GuidanceMomentum(-0.5, solver), jnp.asarray(3.0), times, "float64")
    assert not np.allclose(moved.x, plain.x)


def test_scales_and_momenta_are_swept_by_one_compilation():
    counter = Counter(net)
    field = jf.Guided(jf.Field(counter, PATH, "data"), -0.5, rule=jf.APG())

    @eqx.filter_jit
    def run(solver, scale, times):
        return jf.sample(field, jax.random.key(0), (3,), args=(0.8, scale), times=times, solver=solver)

    for make in (lambda v: jf.CFGpp(), lambda v: jf.GuidanceMomentum(v, jf.DPMpp(2))):
        run(make(-0.5), jnp.asarray(2.0), jf.uniform_times(4))
        traces = counter.traces
        out = run(make(0.3), jnp.asarray(5.0), jnp.linspace(0.0, 0.9, 5))
        assert counter.traces == traces and out.nfe == 8 and jnp.isfinite(out.x).all()
    counter.take()
    assert run(make(0.1), jnp.asarray(5.0), jf.uniform_times(4)).nfe == counter.take() == 8


def test_what_does_not_fit_is_refused():
    x, times, args = jnp.ones(3), jf.uniform_times(3), (0.8, 2.0)
    linear, apg = jf.Guided(FIELD, -0.5), jf.Guided(FIELD, -0.5, rule=jf.APG())
    momentum = jf.GuidanceMomentum()
    for field, options, fragment in (
        (linear, {"solver": jf.CFGpp(), "eta": 1.0, "key": jax.random.key(0)}, "leave out eta="),
        (linear, {"solver": jf.CFGpp(), "args": (0.8, None)}, r"args = \(condition, mu\)"),
        (FIELD, {"solver": jf.CFGpp(), "args": 0.8}, r"args = \(condition, mu\)"),
        (linear, {"solver": jf.CFGpp(), "clock": jf.SigmaClock()}, "brings it along"),
        (linear, {"solver": momentum}, r"rule=jflow.APG\(parallel=1.0\)"),
        (apg, {"solver": momentum, "args": (0.8, None)}, r"args = \(condition, scale\)"),
        (jf.Field(lambda t, x, args: x, PATH, "data"), {"solver": momentum}, "Got another field"),
        (apg, {"solver": jf.GuidanceMomentum(0.1, jf.DPMpp()), "clock": jf.SigmaClock()}, "brings it along"),
    ):
        refuses(lambda f=field, o=options: jf.decode(f, x, **({"times": times, "args": args} | o)), fragment)
    adaptive = {"t0": 0.1, "t1": 0.9, "dt0": 0.1, "stepsize_controller": dfx.ConstantStepSize()}
    refuses(lambda: jf.decode(apg, x, args=args, solver=momentum, **adaptive), "a fixed grid, times=")
    refuses(lambda: jf.GuidanceMomentum(0.1, dfx.Heun()), "Got Heun")
