"""The lecture's ODE and SDE: exact flows, orders, counts, failures (closed forms A1 to A15, B12, C1, C2, K1 to K5)."""

import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter, refuses, within

import jflow as jf

KEY = jr.key(0)
STEPS = dfx.SaveAt(t0=True, steps=True)
RUNGE_KUTTA = {  # solver: order, evaluations a step on a fixed grid
    dfx.Heun: (2, 2),
    dfx.Midpoint: (2, 2),
    dfx.Ralston: (2, 2),
    dfx.Bosh3: (3, 3),
    dfx.Tsit5: (5, 6),
    dfx.Dopri5: (5, 6),
    dfx.Dopri8: (8, 13),
}
SOLVERS = {dfx.Euler: (1, 1), **RUNGE_KUTTA}


def linear(t, x, theta):
    return -theta * x


@eqx.filter_jit
def adaptive(drift, x0, args, t0, t1, tol=1e-6, solver=None):
    return jf.solve(drift, x0, jf.AdaptiveSteps(solver, t0=t0, t1=t1, rtol=tol, atol=tol), args=args)


@eqx.filter_jit
def on_grid(drift, x0, args, times, solver=None, **options):
    return jf.solve(drift, x0, jf.FixedSteps(times, solver), args=args, **options)


# ---------------------------------------------------------------------------------------------- flows


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-8)])
def test_A1_A2_flow_of_a_linear_field(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x0, theta = jnp.asarray([1.0, -2.0], dtype), jnp.asarray(0.5, dtype)
        tol = 1e-6 if dtype == "float32" else 1e-10
        ends = [adaptive(linear, x0, theta, jnp.asarray(0.0, dtype), jnp.asarray(t, dtype), tol) for t in (1.0, 0.0)]
        np.testing.assert_allclose(ends[0].x, [0.60653066, -1.21306132], rtol=tolerance)
        assert ends[0].x.dtype == dtype and ends[0].status == 0 and ends[0].t == 1
        np.testing.assert_array_equal(ends[1].x, x0)  # the flow to its own start is the identity
        assert ends[1].status == 0


def test_A3_sensitivities(x64):
    """In the start, the parameter and the time, through the scan of a fixed grid."""
    x0, theta = jnp.array([1.0, -2.0]), jnp.asarray(0.5)

    @jax.jit
    def all_of(x0, theta, end):
        def flow(x0, theta, end):
            return jf.solve(linear, x0, jf.FixedSteps(jnp.linspace(0.0, end, 41), dfx.Tsit5()), args=theta).x

        return flow(x0, theta, end), jax.jacrev(flow, (0, 1, 2))(x0, theta, end)

    x1, (by_x0, by_theta, by_time) = all_of(x0, theta, 1.0)
    decay = np.exp(-0.5)
    np.testing.assert_allclose(x1, decay * x0, rtol=1e-9)
    np.testing.assert_allclose(by_x0, decay * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(by_theta, -decay * x0, rtol=1e-7)
    np.testing.assert_allclose(by_time, -0.5 * decay * x0, rtol=1e-7)  # the flow moves along the field


@pytest.mark.slow
def test_A3_sensitivities_of_the_flow(x64):
    x0, theta = jnp.array([1.0, -2.0]), jnp.asarray(0.5)

    def flow(x0, theta, t1):
        return jf.ODEFlow(linear, 0.0, t1, args=theta, sampler=jf.AdaptiveSteps(rtol=1e-9, atol=1e-9))(x0)

    by_x0, by_theta, by_time = jax.jit(jax.jacrev(flow, (0, 1, 2)))(x0, theta, 1.0)
    decay = np.exp(-0.5)
    np.testing.assert_allclose(by_x0, decay * np.eye(2), atol=1e-7)
    np.testing.assert_allclose(by_theta, -decay * x0, rtol=1e-7)
    np.testing.assert_allclose(by_time, -0.5 * decay * x0, rtol=1e-6)


def swirl(t, x, args):
    return jnp.stack([jnp.sin(x[1]), jnp.cos(x[0])]) + t


def test_A4_the_flow_is_invertible(x64):
    x0, grid = jnp.array([0.3, -1.2]), jnp.linspace(0, 1, 41)
    x1 = on_grid(swirl, x0, None, grid, dfx.Dopri5()).x
    back = on_grid(swirl, x1, None, grid[::-1], dfx.Dopri5())
    np.testing.assert_allclose(back.x, x0, atol=1e-8)
    assert back.t == 0 and np.abs(x1 - x0).max() > 0.5
    there = adaptive(swirl, x0, None, jnp.asarray(0.0), jnp.asarray(1.0), 1e-9)
    again = adaptive(swirl, there.x, None, jnp.asarray(1.0), jnp.asarray(0.0), 1e-9)
    np.testing.assert_allclose(there.x, x1, atol=1e-7)
    np.testing.assert_allclose(again.x, x0, atol=1e-7)


@pytest.mark.slow
def test_A4_the_flow_and_its_inverse():
    x0 = jnp.array([0.3, -1.2])
    back_and_forth = jax.jit(lambda x: jf.ODEFlow(swirl, 1.0, 0.0)(jf.ODEFlow(swirl, 0.0, 1.0)(x)))
    np.testing.assert_allclose(back_and_forth(x0), x0, atol=1e-4)
    np.testing.assert_array_equal(jf.ODEFlow(swirl, 0.5, 0.5)(x0), x0)


def wave(t, x, args):
    return jnp.cos(2 * jnp.pi * t) * x


def test_A5_semigroup_and_time_dependence(x64):
    def flow(x, start, stop):
        return on_grid(wave, x, None, jnp.linspace(start, stop, 101), dfx.Dopri5()).x

    x0 = jnp.array([1.0, -3.0])
    np.testing.assert_allclose(flow(flow(x0, 0.0, 0.3), 0.3, 1.0), flow(x0, 0.0, 1.0), rtol=1e-8)
    np.testing.assert_allclose(flow(x0, 0.0, 0.25), 1.17251961 * x0, rtol=1e-8)
    np.testing.assert_allclose(flow(x0, 0.0, 1.0), x0, rtol=1e-8)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 100, 1000])
def test_A6_euler_takes_exactly_n_steps(n, x64):
    net = Counter(linear)
    solution = on_grid(net, jnp.ones(1), 1.0, jf.UniformGrid(n))
    np.testing.assert_allclose(solution.x, (1 - 1 / n) ** n, rtol=1e-12, atol=1e-15)
    assert net.take() == solution.nfe == n and solution.t == 1
    if n == 10:
        np.testing.assert_allclose(solution.x, 0.3486784401, rtol=1e-12)


def test_A7_a_grid_need_not_be_uniform():
    times = jnp.array([0.0, 0.1, 0.3, 0.6, 1.0])
    np.testing.assert_allclose(on_grid(linear, jnp.ones(1), 1.0, times).x, 0.3024, rtol=1e-6)


def test_A8_heun():
    x = on_grid(linear, jnp.ones(1), 1.0, jf.UniformGrid(10), dfx.Heun()).x
    np.testing.assert_allclose(x, 0.36854098, rtol=1e-6)


def errors(solver, grids, drift, x0, truth):
    """The error at the end for each number of steps, compiled as one."""

    @jax.jit
    def all_of(x0):
        return [jf.solve(drift, x0, jf.FixedSteps(jf.UniformGrid(n), solver), args=1.0).x for n in grids]

    return np.array([float(x[0]) - truth for x in all_of(x0)])


def test_A9_euler_is_of_order_one(x64):
    error = errors(dfx.Euler(), (64, 128, 256, 512, 1024), linear, jnp.ones(1), np.exp(-1))
    slopes = np.log2(np.abs(error[:-1] / error[1:]))
    assert (slopes[:3] >= 0.98).all() and (slopes[:3] <= 1.03).all()
    np.testing.assert_allclose(1024 * error[-1], -0.18401460, rtol=1e-3)


def test_A10_heun_is_of_order_two(x64):
    error = errors(dfx.Heun(), (64, 128, 256), linear, jnp.ones(1), np.exp(-1))
    slopes = np.log2(np.abs(error[:-1] / error[1:]))
    assert (slopes >= 1.98).all() and (slopes <= 2.03).all()
    np.testing.assert_allclose(256**2 * error[-1], 0.06149323, rtol=1e-3)


def logistic(t, x, args):
    """Its logit grows by `3 t + 3 t^2/2`."""
    return 3 * (1 + t) * x * (1 - x)


def turn(t, x, args):
    """A rotation, by the angle `3 t + 3 t^2/2`."""
    return 3 * (1 + t) * jnp.stack([-x[1], x[0]])


def test_orders_of_convergence_and_evaluations(x64):
    grids = {1: 256, 2: 64, 3: 64, 5: 64, 8: 8}
    ends = {order: 1 / (1 + 4 * np.exp(-4.5)) for order in grids} | {8: np.cos(4.5)}

    @jax.jit
    def all_of(one, two):
        def both(solver, order):
            drift, x0 = (turn, two) if order == 8 else (logistic, one)
            return [
                jf.solve(drift, x0, jf.FixedSteps(jf.UniformGrid(n), solver()))
                for n in (grids[order], 2 * grids[order])
            ]

        return [both(solver, order) for solver, (order, _) in SOLVERS.items()]

    solutions = all_of(jnp.array([0.2]), jnp.array([1.0, 0.0]))
    for (solver, (order, stages)), both in zip(SOLVERS.items(), solutions, strict=True):
        few, many = (abs(float(s.x[0]) - ends[order]) for s in both)
        assert abs(np.log2(few / many) - order) < 0.2, (solver, few, many)
        assert both[0].nfe == stages * grids[order] and both[1].nfe == 2 * stages * grids[order]


def test_A11_an_end_that_is_not_defined_is_seen():
    """`u = (z - x)/(1 - t)`: methods that evaluate at t = 1 say so; those that do not arrive."""
    z = jnp.array([2.0, -1.0])

    @jax.jit
    def all_of(x0):
        def end(solver):
            return jf.solve(lambda t, x, args: (z - x) / (1 - t), x0, jf.FixedSteps(jf.UniformGrid(8), solver()))

        return [end(solver) for solver in SOLVERS]

    for solver, solution in zip(SOLVERS, all_of(jnp.zeros(2)), strict=True):
        if solver in (dfx.Euler, dfx.Midpoint, dfx.Ralston, dfx.Bosh3):
            assert solution.status == 0 and np.isfinite(solution.x).all() and solution.t == 1
            if solver is dfx.Euler:
                np.testing.assert_allclose(solution.x, z, rtol=1e-5)
        else:
            arrived = np.isfinite(solution.x).all()
            assert solution.status == (0 if arrived else 1)
            assert solution.t == pytest.approx(1 if arrived else 7 / 8)
            assert not (arrived and solver is dfx.Heun)


def test_A12_trajectory_layout():
    x0, times = jr.normal(KEY, (5, 2)), jf.UniformGrid(4)
    run = jax.jit(jax.vmap(lambda x: jf.solve(linear, x, times, args=0.5, saveat=STEPS)))
    batch = run(x0)
    assert batch.xs.shape == (5, 5, 2) and batch.ts.shape == (5, 5)
    np.testing.assert_array_equal(batch.xs[:, 0], x0)
    np.testing.assert_array_equal(batch.xs[:, -1], batch.x)
    np.testing.assert_array_equal(batch.ts[0], times.times())
    final = jax.jit(jax.vmap(lambda x: jf.solve(linear, x, times, args=0.5)))(x0)
    np.testing.assert_array_equal(final.x, batch.x)
    assert final.xs is None and final.ts is None and final.log_prob is None
    np.testing.assert_array_equal(run(jnp.stack([x0[2]] * 5)).xs[0], batch.xs[2])  # whatever else is in the batch
    np.testing.assert_allclose(run(x0[:2]).xs, batch.xs[:2], rtol=1e-6)


def test_what_a_fixed_grid_saves():
    def saved(saveat, n=7):
        return jf.solve(linear, jnp.ones(2), jf.UniformGrid(n), args=0.5, saveat=saveat)

    every = saved(STEPS)
    two = saved(dfx.SaveAt(steps=2))
    np.testing.assert_allclose(two.ts, [2 / 7, 4 / 7, 6 / 7], rtol=1e-6)
    np.testing.assert_array_equal(two.xs, every.xs[2::2])
    start = saved(dfx.SaveAt(t0=True))
    np.testing.assert_array_equal(start.ts, [0])
    np.testing.assert_array_equal(start.xs, np.ones((1, 2)))
    squares = saved(dfx.SaveAt(t0=True, steps=True, fn=lambda t, x, args: (t, jnp.sum(x**2) * args)))
    np.testing.assert_allclose(squares.xs[1], 0.5 * (every.xs**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(squares.xs[0], every.ts)
    for saveat in (
        dfx.SaveAt(ts=jnp.array([0.5])),
        dfx.SaveAt(dense=True),
        dfx.SaveAt(subs={"a": dfx.SubSaveAt(t1=True)}),
    ):
        with pytest.raises(ValueError, match="On a fixed grid saveat must save the steps"):
            saved(saveat)


# --------------------------------------------------------------------------------------------- failures


def square(t, x, args):
    return x**2


def test_A13_failure_is_visible():
    """`x' = x^2` from 1 blows up at t = 1."""
    solution = adaptive(square, jnp.ones(1), None, jnp.asarray(0.0), jnp.asarray(2.0), 1e-5)
    assert solution.status == 1 and 0.99 < solution.t <= 1.01
    fixed = on_grid(square, jnp.ones(1), None, jnp.linspace(0.0, 2.0, 101))
    assert fixed.status == 1 and 1 < fixed.t < 1.3 and not np.isfinite(fixed.x).all()
    few = jf.solve(linear, jnp.ones(1), jf.AdaptiveSteps(max_steps=3), args=50.0)
    assert few.status == 2 and 0 < few.t < 1 and np.isfinite(few.x).all()


def decay_or_blow_up(t, x, args):
    return args * x**2 - x


@ft.cache
def lanes():
    net = Counter(decay_or_blow_up)

    def one(x0, arg):
        return jf.solve(net, x0, jf.AdaptiveSteps(rtol=1e-4, atol=1e-4), args=arg)

    return net, jax.jit(jax.vmap(one))


def test_a_bad_sample_spoils_no_other_and_costs_few_steps():
    net, run = lanes()
    x0, args = jnp.linspace(0.5, 1.5, 8)[:, None], jnp.zeros(8)
    good = run(x0, args)
    calls = net.take()
    bad = {
        "nan": (x0.at[3].set(jnp.nan), args),
        "infinite": (x0.at[3].set(jnp.inf), args),
        "blow-up": (x0, args.at[3].set(5.0)),
    }
    others = np.arange(8) != 3
    assert (good.status == 0).all() and (good.t == 1).all()
    for name, inputs in bad.items():
        solution = run(*inputs)
        extra = (net.take() - calls) / 8 / 7  # steps of the batch: every lane is evaluated in each, at most 7 times
        np.testing.assert_array_equal(solution.x[others], good.x[others])  # bit for bit
        np.testing.assert_array_equal(solution.nfe[others], good.nfe[others])
        assert (solution.status == np.where(others, 0, 1)).all(), name
        assert solution.t[3] < 1
        if name != "blow-up":
            assert extra <= 20 and solution.nfe[3] <= 20 * 7, name


def test_a_bad_sample_on_a_fixed_grid_spoils_no_other():
    x0 = jnp.linspace(0.5, 1.5, 8)[:, None]
    run = jax.jit(jax.vmap(lambda x: jf.solve(linear, x, jf.UniformGrid(5), args=1.0)))
    good, bad = run(x0), run(x0.at[3].set(jnp.nan))
    others = np.arange(8) != 3
    np.testing.assert_array_equal(good.x[others], bad.x[others])
    np.testing.assert_array_equal(bad.status, np.where(others, 0, 1))
    np.testing.assert_array_equal(bad.t, np.where(others, 1, 0))


# ------------------------------------------------------------------------------------------- likelihood, laws


def test_A14_density_transport(x64):
    """`log p1(psi(x0)) = log p0(x0) - int div u dt`, as a state of two parts."""

    def drift(t, state, theta):
        return {"x": -theta * state["x"], "log_p": jnp.asarray(2 * theta)}

    x0 = jnp.array([1.0, -2.0])
    start = {"x": x0, "log_p": jax.scipy.stats.norm.logpdf(x0).sum()}
    end = on_grid(drift, start, 0.5, jf.UniformGrid(20), dfx.Dopri5()).x
    np.testing.assert_allclose(end["log_p"], -3.33787707, atol=1e-8)
    np.testing.assert_allclose(end["x"], np.exp(-0.5) * x0, rtol=1e-8)


def test_A15_push_forward():
    n = 100_000
    x0 = jr.normal(KEY, (n, 1))
    sampler = jf.FixedSteps(jf.UniformGrid(4), dfx.Tsit5())
    x1 = jax.jit(jax.vmap(lambda x: jf.solve(linear, x, sampler, args=0.5).x))(x0)
    assert within(x1.var(), 0.36787944, 0.36787944 * np.sqrt(2 / n))
    assert within(x1.mean(), 0, np.sqrt(0.36787944 / n))


# ------------------------------------------------------------------------------------------------- counts


def oscillator(t, x, args):
    """Steps are rejected where the frequency jumps up."""
    return -jnp.where(t > 0.5, 60.0, 1.0) * x + jnp.sin(9 * t)


def test_evaluations_are_counted_on_a_fixed_grid():
    nets = {solver: Counter(oscillator) for solver in SOLVERS}

    @jax.jit
    def all_of(x0):
        return [jf.solve(net, x0, jf.FixedSteps(jf.UniformGrid(5), s())).nfe for s, net in nets.items()]

    for (solver, net), nfe in zip(nets.items(), all_of(jnp.ones(2)), strict=True):
        assert net.take() == nfe == 5 * SOLVERS[solver][1], solver


@pytest.mark.parametrize(
    "solver", [dfx.Tsit5, *(pytest.param(s, marks=pytest.mark.slow) for s in RUNGE_KUTTA if s is not dfx.Tsit5)]
)
@pytest.mark.parametrize("first", [None, pytest.param(0.1, marks=pytest.mark.slow)], ids=["chosen", "given"])
def test_evaluations_are_counted_with_rejected_steps(solver, first):
    net = Counter(oscillator)

    @jax.jit
    def run(x0):
        return jf.solve(net, x0, jf.AdaptiveSteps(solver(), dt0=first, rtol=1e-3, atol=1e-3))

    solution = run(jnp.ones(2))
    assert net.take() == solution.nfe and solution.status == 0


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dfx.Euler, dfx.Midpoint, dfx.Tsit5])
def test_evaluations_are_counted_with_constant_steps(solver):
    net = Counter(oscillator)

    @jax.jit
    def run(x0):
        return jf.solve(net, x0, jf.AdaptiveSteps(solver(), dfx.ConstantStepSize(), dt0=0.25))

    assert net.take() == 0
    assert run(jnp.ones(2)).nfe == net.take()


@pytest.mark.slow
def test_nothing_is_guessed_for_an_implicit_solver():
    run = jax.jit(lambda x: jf.solve(linear, x, jf.AdaptiveSteps(dfx.Kvaerno3()), args=1.0))
    solution = run(jnp.ones(2))
    assert solution.nfe is None and solution.status == 0
    np.testing.assert_allclose(solution.x, np.exp(-1), rtol=1e-3)


# ----------------------------------------------------------------------------------------- parity with diffrax


@pytest.mark.parametrize(
    "solver", [dfx.Tsit5, *(pytest.param(s, marks=pytest.mark.slow) for s in SOLVERS if s != dfx.Tsit5)]
)
def test_written_out_stages_equal_diffrax(solver, x64):
    times = jnp.array([0.0, 0.07, 0.2, 0.5, 0.6, 1.0])

    @ft.partial(jax.jit, static_argnums=1)
    def both(x0, dtype):
        ts, x0 = times.astype(dtype), x0.astype(dtype)
        reference = dfx.diffeqsolve(
            dfx.ODETerm(swirl), solver(), ts[0], ts[-1], None, x0, stepsize_controller=dfx.StepTo(ts)
        )  # fmt: skip
        return jf.solve(swirl, x0, jf.FixedSteps(ts, solver())).x, reference.ys[-1]

    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-6)):
        own, theirs = both(jnp.array([0.3, -1.2]), dtype)
        assert own.dtype == dtype
        np.testing.assert_allclose(own, theirs, rtol=tolerance)


# ----------------------------------------------------------------------------------------------------- SDEs


def test_C1_without_noise_euler_maruyama_is_euler():
    times, x0 = jf.UniformGrid(6), jnp.array([1.0, -2.0])

    @jax.jit
    def both(key):
        quiet = jf.solve(linear, x0, times, args=0.7, diffusion=lambda t, x, args: 0.0, key=key).x
        return quiet, jf.solve(linear, x0, times, args=0.7).x

    for seed in range(3):
        quiet, flow = both(jr.key(seed))
        np.testing.assert_array_equal(quiet, flow)


def test_C2_a_diffusion_coefficient_is_a_function_of_time_state_and_args(x64):
    """A number, diagonal or a matrix: each against a recursion by hand with the same normals."""
    times, x0 = np.array([0.0, 0.1, 0.4, 0.5, 1.0]), np.array([1.0, -2.0])
    matrix = np.array([[1.0, 0.2, -0.3], [0.0, 0.5, 1.0]])
    coefficients = {
        "number": (lambda t, x, a: 0.3 + t, 2),
        "diagonal": (lambda t, x, a: a * x * t, 2),
        "matrix": (lambda t, x, a: (1 + t) * matrix, 3),
    }
    normals = {m: np.asarray(jr.normal(jr.key(m), (4, m)), float) for m in (2, 3)}

    def run(diffusion, z):
        return jf.solve(linear, jnp.asarray(x0), times, args=0.5, diffusion=diffusion, brownian=jf.Recorded(z)).x

    for name, (g, m) in coefficients.items():
        x = x0.copy()
        for i, h in enumerate(np.diff(times)):
            value, dw = np.asarray(g(times[i], x, 0.5)), np.sqrt(h) * normals[m][i]
            x = x - 0.5 * x * h + (value @ dw if value.ndim == 2 else value * dw)
        out = run(lambda t, x, a, g=g: jnp.asarray(g(t, x, a)), jnp.asarray(normals[m]))
        np.testing.assert_allclose(out, x, rtol=1e-10, err_msg=name)
    tree = jf.solve(
        lambda t, x, a: jax.tree.map(jnp.zeros_like, x), {"a": jnp.zeros(2), "b": jnp.zeros((1, 2))}, times,
        diffusion=lambda t, x, a: {"a": jnp.ones(2), "b": jnp.full((1, 2), 2.0)},
        brownian=jf.Recorded({"a": jnp.asarray(normals[2]), "b": jnp.asarray(normals[2])[:, None]}),
    ).x  # fmt: skip
    np.testing.assert_allclose(tree["b"][0], 2 * tree["a"], rtol=1e-6)


STOCHASTIC = {"SEA": dfx.SEA(), "SRA1": dfx.SRA1(), "ShARK": dfx.ShARK()}


def half(t, x, args):
    return 0.5


@pytest.mark.slow
def test_stochastic_runge_kutta_runs_with_its_levy_area():
    """The law of an Ornstein-Uhlenbeck process at t = 1, at four steps."""
    n, grid, key = 20_000, jf.UniformGrid(4), jr.key(5)
    nets = {name: Counter(linear) for name in STOCHASTIC}

    @jax.jit
    def run(keys):
        def one(drift, name, key):
            return jf.solve(
                drift, jnp.ones(1), jf.FixedSteps(grid, STOCHASTIC[name]), args=1.0, diffusion=half, key=key
            )

        ends = {name: jax.vmap(lambda key, name=name: one(linear, name, key).x)(keys) for name in STOCHASTIC}
        return ends, {name: one(net, name, key).nfe for name, net in nets.items()}

    ends, counts = run(jr.split(KEY, n))
    means = {"SEA": 0.75**4, "SRA1": 0.78125**4, "ShARK": 0.78125**4}  # one and two stages on a linear drift
    variance = 0.25 * (1 - np.exp(-2)) / 2
    for name, x in ends.items():
        assert nets[name].take() == counts[name] == 4 * (1 if name == "SEA" else 2)
        assert within(x.mean(), means[name], np.sqrt(variance / n)), name
    # x' = (1 - h) x + 0.5 ((1 - h/2) W - h H), with H of variance h/12
    h, exact = 0.25, 0.0
    for _ in range(4):
        exact = (1 - h) ** 2 * exact + 0.25 * ((1 - h / 2) ** 2 * h + h**3 / 12)
    assert within(ends["SEA"].var(), exact, exact * np.sqrt(2 / n))
    for name in ("SRA1", "ShARK"):
        assert within(ends[name].var(), variance, variance * (np.sqrt(2 / n) + 0.02 / 4)), name


def strong_errors(drift, diffusion, grids, fine, exact=None):
    """Root mean square distance at t = 1 to the path on the fine grid, with the same Brownian motion."""
    z = jr.normal(KEY, (2000, fine, 1))

    def one(z, n):
        z = z.reshape(n, fine // n, 1).sum(1) / np.sqrt(fine // n)
        return jf.solve(drift, jnp.ones(1), jf.UniformGrid(n), diffusion=diffusion, brownian=jf.Recorded(z)).x

    ends = [jax.jit(jax.vmap(lambda z, n=n: one(z, n)))(z) for n in grids]
    truth = exact(z.sum(1) / np.sqrt(fine)) if exact else jax.jit(jax.vmap(lambda z: one(z, fine)))(z)
    return np.array([np.sqrt(np.mean((end - truth) ** 2)) for end in ends])


@pytest.mark.slow
def test_B12_strong_order():
    grids = (16, 64, 256)
    additive = strong_errors(lambda t, x, a: -x, lambda t, x, a: 0.5, grids, 4096)
    slope = np.polyfit(np.log(grids), np.log(additive), 1)[0]
    assert abs(slope + 1) < 0.1
    geometric = strong_errors(lambda t, x, a: 0 * x, lambda t, x, a: x, grids, 1024, lambda w: jnp.exp(w - 0.5))
    assert abs(np.polyfit(np.log(grids), np.log(geometric), 1)[0] + 0.5) < 0.1


def test_K3_gradient_through_an_sde(x64):
    def drift(t, x, a):
        return -a * jnp.tanh(x)

    def diffusion(t, x, a):
        return 0.3 * a * jnp.cos(x)

    def loss(theta):
        grid = jf.UniformGrid(12)
        return jnp.sum(jf.solve(drift, jnp.ones(2), grid, args=theta, diffusion=diffusion, key=jr.key(3)).x ** 2)

    both = jax.jit(jax.value_and_grad(loss))
    step = 1e-5
    finite = (both(0.8 + step)[0] - both(0.8 - step)[0]) / (2 * step)
    np.testing.assert_allclose(both(0.8)[1], finite, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ JAX's contract


def test_K1_events_of_any_shape():
    shapes = [(3,), (2, 3, 1), (2, 2, 3, 1)]

    @jax.jit
    def every(starts):
        def ends(x0):
            noisy = jf.solve(linear, x0, jf.UniformGrid(2), args=1.0, diffusion=unit_noise, key=KEY)
            return jf.solve(linear, x0, jf.UniformGrid(10), args=1.0).x, noisy.x

        return [ends(x0) for x0 in starts]

    starts = [jr.normal(KEY, shape) for shape in shapes]
    for x0, (x1, noisy) in zip(starts, every(starts), strict=True):
        np.testing.assert_allclose(x1, 0.9**10 * x0, rtol=1e-5)
        assert noisy.shape == x0.shape


def unit_noise(t, x, args):
    return 1.0


def test_K2_jit_equals_eager_and_new_values_do_not_retrace():
    net = Counter(linear)
    run = jax.jit(lambda x0, theta, times, key: jf.solve(
        net, x0, times, args=theta, diffusion=unit_noise, key=key, saveat=STEPS
    ))  # fmt: skip
    inputs = jnp.array([1.0, -2.0]), jnp.asarray(0.5), jnp.linspace(0, 1, 6), KEY
    compiled = run(*inputs)
    traces = net.traces
    eager = jf.solve(linear, inputs[0], inputs[2], args=0.5, diffusion=unit_noise, key=KEY, saveat=STEPS)
    np.testing.assert_allclose(compiled.xs, eager.xs, rtol=1e-6)
    run(2 * inputs[0], jnp.asarray(0.1), inputs[2] ** 2, jr.key(9))
    assert net.traces == traces


def test_K4_types_are_kept():
    """The loop is in float32 or wider; integers raise, since each step would round them."""

    def out(x, **options):
        return jax.eval_shape(lambda x: jf.solve(linear, x, jf.UniformGrid(2), args=0.5, **options), x)

    for x64 in (False, True):
        with jax.enable_x64(x64):
            for given in ("float32", "bfloat16", "float16"):
                made = out(jnp.ones(2, given))
                assert made.x.dtype == made.t.dtype == "float32"
            if x64:
                for made in (out(jnp.ones(2)), out(jnp.ones(2, "float32"), dtype=jnp.float64)):
                    assert made.x.dtype == made.t.dtype == "float64"
    made = out(jnp.ones(2), dtype=jnp.bfloat16)
    assert made.x.dtype == "float32" and made.nfe.dtype == made.status.dtype == "int32"
    for kind in ("int32", "uint8", "bool"):
        with pytest.raises(ValueError, match="must be of a floating-point type"):
            out(jnp.ones(2, kind))
    low = jf.solve(lambda t, x, a: (-x).astype(jnp.bfloat16), jnp.ones(2), jf.UniformGrid(2))
    assert low.x.dtype == jnp.float32


def test_K5_a_sample_does_not_depend_on_its_batch():
    def one(x0, key):
        return jf.solve(linear, x0, jf.UniformGrid(5), args=0.5, diffusion=unit_noise, key=key).x

    x0, keys = jr.normal(KEY, (7, 2)), jr.split(KEY, 7)
    batch = jax.jit(jax.vmap(one))(x0, keys)
    alone = jax.jit(one)
    for i in (0, 4, 6):
        np.testing.assert_allclose(alone(x0[i], keys[i]), batch[i], rtol=1e-6)


# ------------------------------------------------------------------------------------------------- adaptive extras


@pytest.mark.slow
def test_adaptive_saves_events_and_dense_output(x64):
    ts = jnp.linspace(0.0, 1.0, 5)
    tight = jf.AdaptiveSteps(rtol=1e-9, atol=1e-9)

    def run(sampler, saveat=None, event=None):
        return jf.solve(linear, jnp.ones(2), sampler, args=1.0, saveat=saveat, event=event)

    saved = run(tight, dfx.SaveAt(ts=ts))
    np.testing.assert_allclose(saved.xs, np.exp(-ts)[:, None] * np.ones((1, 2)), rtol=1e-7)
    np.testing.assert_array_equal(saved.ts, ts)
    steps = run(jf.AdaptiveSteps(max_steps=50), dfx.SaveAt(steps=True))
    kept = np.isfinite(steps.ts)
    np.testing.assert_allclose(steps.xs[kept], np.exp(-steps.ts[kept])[:, None] * np.ones((1, 2)), rtol=1e-4)
    assert 0 < kept.sum() < 50 and steps.ts[kept][-1] == 1
    half = run(tight, event=dfx.Event(lambda t, x, args, **kwargs: x[0] - 0.5))
    assert half.status == 3 and half.t < 1
    dense = run(jf.AdaptiveSteps(), dfx.SaveAt(dense=True))
    np.testing.assert_allclose(dense.interpolation.evaluate(0.3), np.exp(-0.3), rtol=1e-4)


@pytest.mark.slow
def test_an_adaptive_sde_takes_a_path_known_everywhere():
    tree = dfx.VirtualBrownianTree(0.0, 1.0, tol=1e-3, shape=(2,), key=KEY, levy_area=dfx.SpaceTimeLevyArea)
    noise = {"args": 1.0, "diffusion": unit_noise, "brownian": tree}
    sampler = jf.AdaptiveSteps(dfx.ShARK(), dfx.PIDController(1e-2, 1e-2, dtmin=1e-3), dt0=0.1)
    solution = jf.solve(linear, jnp.ones(2), sampler, **noise)
    fine = jf.solve(linear, jnp.ones(2), jf.UniformGrid(256), **noise)
    assert solution.status == 0
    np.testing.assert_allclose(solution.x, fine.x, atol=0.02)


# ------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_raises_with_a_reason():
    x0, times, adaptive = jnp.ones(2), jf.UniformGrid(4), jf.AdaptiveSteps()
    noisy = {"diffusion": unit_noise, "key": KEY}
    event, tree = dfx.Event(lambda *_, **__: True), dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), KEY)
    recorded = jf.Recorded(jnp.ones((4, 2)))
    for sampler, options, fragment in [
        (times, {"event": event}, "event= must go with adaptive steps"),
        (jnp.array([0.0, 0.5, 0.5, 1.0]), {}, "strictly"),
        (jnp.array([0.0, 0.5, 1.0, 1.0]), {}, "strictly, .* a last point twice"),
        (times.times()[::-1], noisy, "increase strictly, .* with diffusion="),
        (jf.UniformGrid(4, 1.0, 0.0), noisy, "increase strictly, .* with diffusion="),
        (times, {"diffusion": unit_noise}, "pass key="),
        (times, {"diffusion": lambda t, x, a: jnp.ones(3), "key": KEY}, "A diffusion coefficient must be"),
        (times, {"diffusion": lambda t, x, a: jnp.ones((3, 2)), "key": KEY}, "A diffusion coefficient must be"),
        (times, {"diffusion": lambda t, x, a: {"a": x}, "key": KEY}, "A diffusion coefficient must be"),
        (times, {"brownian": recorded}, "brownian= must go with an SDE"),
        (times, {"diffusion": unit_noise, "brownian": jf.Recorded(jnp.ones((3, 2)))}, "4 for this grid"),
        (times, {"diffusion": unit_noise, "brownian": jf.Recorded({"a": jnp.ones((4, 2))})}, "structure of the noise"),
        (jf.FixedSteps(times, dfx.EulerHeun()), {}, "EulerHeun must have an SDE"),
        (jf.FixedSteps(times, dfx.SRA1()), {}, "SRA1 must have an SDE"),
        (jf.FixedSteps(times, jf.DPMpp(2)), {}, r"Got DPMpp\(\), a method of a field's clock"),
        (jf.FixedSteps(times, jf.EDMChurn(1.0)), {}, "EDMChurn"),
        (jf.FixedSteps(times, jf.Jump()), {}, "jflow.solve must have a diffrax solver. Got Jump"),
        (jf.FixedSteps(times, clock=jf.RatioClock()), {}, "must be without clock="),
        (jf.FixedSteps(times, eta=1.0, end="stop"), noisy, "must be without eta, end="),
        (jf.AdaptiveSteps(diffusion=lambda t: t), {}, "must be without diffusion="),
        (jf.KarrasGrid(4), {}, r"must be UniformGrid or an array: there is no path\. Got KarrasGrid"),
        (adaptive, {"diffusion": unit_noise, "key": KEY}, "must have a Brownian path known at every time"),
        (adaptive, {"diffusion": unit_noise, "brownian": recorded}, "Recorded noise must go with the steps"),
        (adaptive, {"brownian": tree}, "brownian= must go with an SDE"),
        (jf.AdaptiveSteps(dfx.Euler()), {}, "must have a solver with an error estimate"),
        (jf.AdaptiveSteps(jf.Adams(3)), {}, "must have a solver with an error estimate"),
        (
            jf.AdaptiveSteps(dfx.SlowRK()),
            {"diffusion": unit_noise, "brownian": tree},
            "must have a solver with an error",
        ),
    ]:
        refuses(lambda s=sampler, options=options: jf.solve(linear, x0, s, args=1.0, **options), fragment)
    for drift, fragment in [
        (lambda t, x, a: x[0], "A drift must have the shape of the state"),
        (lambda t, x, a: x[None], "vmap is missing"),
        (lambda t, x, a: {"x": x}, "A drift must have the structure"),
    ]:
        refuses(lambda drift=drift: jf.solve(drift, x0, times), fragment)
    refuses(lambda: jf.solve(linear, x0, dfx.Heun()), r"A sampler must be jflow\.FixedSteps", TypeError)
    refuses(lambda: jf.solve(3.0, x0, times), r"drift must be a function of 3 argument", TypeError)
    refuses(lambda: jf.solve(linear, x0, times, solver=dfx.Heun()), "solver", TypeError)
