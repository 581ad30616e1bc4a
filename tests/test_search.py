"""Fitted grids and the best of many samplers, judged on noises that the search did not see."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses

import jflow as jf
from jflow import search

KEY, HELD_OUT = jr.key(0), jr.key(1)
MIXTURE = jf.distributions.GaussianMixture(
    jnp.array([[-1.0, 0.5], [1.2, 0.3], [0.0, -1.0]]), stds=jnp.array([0.3, 0.4, 0.5])
)
FIELD = MIXTURE.field(jf.CondOT())
ADAMS = {"solver": jf.Adams(3, corrector=True), "clock": jf.RatioClock()}
QUICK = {"num": 64, "iterations": 20, "progress": False}


@eqx.filter_jit
def drawn(field, key, args, sampler):
    """256 samples of one event of shape (2,)."""
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(256))
    return jax.vmap(lambda k: jf.sample(field, k, (2,), sampler, args=args))(keys)


def adams(times, **options):
    return jf.FixedSteps(times, ADAMS["solver"], clock=ADAMS["clock"], **options)


@pytest.fixture(scope="module")
def converged():
    """The samples of the ODE, adaptively."""
    return drawn(FIELD, HELD_OUT, None, jf.AdaptiveSteps(rtol=1e-6, atol=1e-6)).x


def error(x, target):
    """Median and root mean square of the samples' errors."""
    each = np.sqrt(np.mean((np.asarray(x) - np.asarray(target)) ** 2, axis=-1))
    return np.array([np.median(each), np.sqrt(np.mean(each**2))])


@pytest.fixture(scope="module")
def fitted():
    return search.optimize_times(FIELD, KEY, 6, (2,), **ADAMS, **QUICK)


@pytest.mark.slow
def test_a_fitted_grid_is_a_grid_between_its_ends(fitted):
    assert fitted.shape == (7,)
    assert fitted[0] == 0 and fitted[-1] == 1 and (jnp.diff(fitted) > 0).all()


@pytest.mark.slow
def test_a_fitted_grid_is_better_on_other_noises(fitted, converged):
    ours, even = (
        error(drawn(FIELD, HELD_OUT, None, adams(times)).x, converged) for times in (fitted, jf.UniformGrid(6))
    )
    assert (ours < even / 2).all(), (ours, even)


@pytest.mark.slow
def test_the_fit_is_decided_by_the_key(fitted):
    again, other = (search.optimize_times(FIELD, key, 6, (2,), **ADAMS, **QUICK) for key in (KEY, jr.key(7)))
    assert (again == fitted).all()
    assert (other != fitted).any() and jnp.allclose(other, fitted, atol=0.1)


@pytest.mark.slow
def test_conditions_ends_and_keys_do_not_retrace():
    traces = []

    def net(t, x, args):
        traces.append(t)
        return MIXTURE.field(jf.CondOT()).velocity(t, x, None) * jnp.ones(2) + args

    field = jf.Field(net, jf.CondOT(), "velocity")
    means = jr.normal(KEY, (8, 2))
    options = {"solver": dfx.Euler(), "num": 8, "iterations": 2, "progress": False, "args_in_axes": 0}
    first = search.optimize_times(field, KEY, 4, (2,), args=means, t1=0.9, **options)
    count = len(traces)
    second = search.optimize_times(field, HELD_OUT, 4, (2,), args=2 * means, t0=0.1, **options)
    assert len(traces) == count
    assert first[-1] == jnp.float32(0.9) and second[0] == jnp.float32(0.1)
    refuses(
        lambda: search.optimize_times(field, KEY, 4, (2,), args=means[:5], **options), r"num = 8. Got shape \(5, 2\)"
    )
    refuses(lambda: search.optimize_times(field, KEY, 4, (2,), args=means, **options | {"args_in_axes": 1}), "Got 1")


def test_the_error_is_over_all_components_of_an_event():
    rng = np.random.default_rng(0)
    x, y = ({"a": rng.normal(size=(3, 2, 2)), "b": rng.normal(size=(3, 5))} for _ in range(2))
    flat = lambda e: np.concatenate([e["a"].reshape(3, -1), e["b"]], axis=1)  # noqa: E731
    ours = search._task.errors(jax.tree.map(jnp.float32, x), jax.tree.map(jnp.float32, y))
    assert np.allclose(ours, np.sqrt(np.mean((flat(x) - flat(y)) ** 2, axis=1)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "denoise"])
def test_a_search_draws_what_sample_draws(end):
    drawing = search._task.make_task(FIELD, HELD_OUT, (2,), None, None, 256, None, None)
    sampler = adams(jf.UniformGrid(6), end=end)
    samples = drawn(FIELD, HELD_OUT, None, sampler).x
    assert all(jnp.allclose(drawing.draw(sampler, unroll).x, samples, atol=1e-6) for unroll in (False, True))


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_the_fine_solve_is_converged(predicts, converged):
    task = search._task
    field = jf.Field(getattr(FIELD, predicts), jf.CondOT(), predicts)
    drawing = task.make_task(field, HELD_OUT, (2,), None, None, 256, None, None)
    target = task.fine(drawing, task.make_ends(0.0, 1.0), "denoise" if predicts == "data" else "stop")
    assert np.abs(target - converged).max() < 1e-4


@pytest.fixture(scope="module")
def best():
    candidates = {
        "Heun": lambda n: jf.FixedSteps(jf.UniformGrid(n, t0=0.2), dfx.Heun()),
        "Adams, even": lambda n: adams(jf.UniformGrid(n)),
        "Adams, late": lambda n: adams(jnp.linspace(0.2, 1.0, n + 1)),
    }
    return search.best_sampler(FIELD, KEY, 6, (2,), candidates=candidates, fit=1, **QUICK | {"num": 256})


@pytest.mark.slow
def test_the_best_is_the_first_of_its_table(best, converged):
    errors = list(best.table.values())
    assert errors == sorted(errors)
    assert best.name == "Adams, even, times and weights fitted" == next(iter(best.table))
    assert [name for name in best.table if "fitted" in name] == [best.name, "Adams, even, times fitted"]
    assert isinstance(best.sampler.solver, jf.NonStationary) and best.sampler.end == "stop"
    assert best.sampler.times.shape == (7,) and best.sampler.clock == jf.RatioClock()
    solution = drawn(FIELD, HELD_OUT, None, best.sampler)
    assert (solution.nfe == best.nfe).all() and best.nfe == 6
    assert np.isclose(error(solution.x, converged)[1], best.table[best.name], rtol=0.5)


class Clock:
    """Time that passes by what a search does: 3 s a program, 1 ms an evaluation of all noises."""

    def __init__(self, monkeypatch):
        self.now, self.programs, self.evaluations = 0.0, set(), 0
        monkeypatch.setattr(search.best.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(search.best, "draw", self.draw)
        monkeypatch.setattr(search.best, "fine", self.fine)

    def spend(self, which, task, evaluations):
        new = which not in self.programs
        self.programs.add(which)
        self.evaluations += evaluations * len(task.keys)
        self.now += 3.0 * new + 1e-3 * evaluations

    def draw(self, task, sampler):
        self.spend(repr((sampler.solver, sampler.clock, sampler.end, sampler.n)), task, sampler.n)
        order = next(order for order in (2, 3, 4) if sampler.solver == jf.Adams(order))
        x = jnp.full((len(task.keys), 2), 1.0 + order)
        return jf.Solution(x, nfe=jnp.full(len(task.keys), sampler.n))

    def fine(self, task, ends, end):
        self.spend(end, task, 400)
        return jnp.ones((len(task.keys), 2))


ORDERS = {
    f"Adams {order}, {grid.__name__}": lambda n, order=order, grid=grid: jf.FixedSteps(
        grid(n), jf.Adams(order), clock=jf.RatioClock()
    )
    for order in (2, 3, 4)
    for grid in (jf.EasedGrid, jf.UniformGrid)
}


def test_a_search_says_before_it_starts_what_it_costs(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    best = search.best_sampler(FIELD, KEY, 6, (2,), candidates=ORDERS, num=8)
    (line, *_) = capsys.readouterr().err.splitlines()
    assert line.startswith("best_sampler: 6 samplers, ") and best.name in ("Adams 2, EasedGrid", "Adams 2, UniformGrid")
    assert f" {clock.evaluations:,} evaluations of the network" in line
    assert clock.now / 2 < float(line.split("about ")[1].split(" s")[0]) < 2 * clock.now
    assert len(clock.programs) == 4 and len(best.table) == 6
    search.best_sampler(FIELD, KEY, 6, (2,), candidates=ORDERS, num=8, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("budget", "orders"), [(1e-3, [2]), (9.0, [2]), (10.5, [2, 3]), (60, [2, 3, 4])])
def test_a_search_keeps_its_budget(monkeypatch, capsys, budget, orders):
    """Two programs and a fine solve are needed for the first sampler, and a program for each further solver."""
    clock = Clock(monkeypatch)
    best = search.best_sampler(FIELD, KEY, 6, (2,), candidates=ORDERS, budget=budget, num=8)
    assert f"of which it may take {budget:g} s" in capsys.readouterr().err
    assert sorted({int(name.split()[1][0]) for name in best.table}) == orders
    assert clock.now <= max(budget, 6.5) and (len(best.table) == 2 * len(orders) or budget < 1)


@pytest.mark.slow
def test_a_fit_ends_where_the_time_does():
    """At a budget that the first gradient spends a fit is one step, and the best sampler still a sampler."""
    task = search._task.make_task(FIELD, KEY, (2,), None, None, 8, None, None)
    ends = search._task.make_ends(0.0, 1.0)
    sampler = adams(jf.UniformGrid(3), end="stop")
    target = search._task.fine(task, ends, "stop")
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        slope = search.times._slope
        patch.setattr(search.times, "_slope", lambda *args: steps.append(1) or slope(*args))
        times = search.times.fit_times(task, target, ends, sampler, 50, False, until=0.0)
    assert len(steps) == len(search.times.STARTS) and times.shape == (4,)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), True, "60"])
def test_a_budget_must_be_positive(budget):
    refuses(
        lambda: search.best_sampler(FIELD, KEY, 6, (2,), budget=budget), "budget must be a (positive|finite) number"
    )


@pytest.mark.slow
def test_the_best_of_the_default_rules_prints_as_code():
    """The rules come first: without `fit` nothing is fitted, and the sampler is the code of a rule."""
    task, ends = search._task.make_task(FIELD, KEY, (2,), None, None, 2, None, None), search._task.make_ends(0.0, 1.0)
    plans = search.best._plans(task, None, ends, 10)
    assert next(iter(plans)) == "recommended" and len(plans) == 33
    names = {"jf": jf, "dfx": dfx, "jnp": jnp}
    for name, sampler in plans.items():
        assert sampler.n == 10 and sampler.end in ("stop", "denoise")
        assert eval(repr(sampler), names) == sampler == jf.from_json(jf.to_json(sampler))
        assert ("Grid(" in repr(sampler)) == (not name.endswith("even in the angle"))
    assert plans["Adams PC 3, eased"] == adams(jf.EasedGrid(10), end="stop")
    later = search.best._plans(task, None, search._task.make_ends(0.1, 0.9), 10)
    assert len(later) == 32 and all(
        jnp.allclose(sampler.times[jnp.array([0, -1])], jnp.array([0.1, 0.9])) for sampler in later.values()
    )


def test_a_choice_of_ones_own_takes_the_calls_that_are_asked_for():
    best = lambda nfe, candidate: search.best_sampler(FIELD, KEY, nfe, (2,), candidates={"mine": candidate})  # noqa: E731
    heun = lambda n: jf.FixedSteps(jf.UniformGrid(n), dfx.Heun())  # noqa: E731
    refuses(lambda: best(7, heun), "mine takes, 4 in 2 steps and 2 more in every further one. Got nfe=7")
    refuses(lambda: best(0, heun), "nfe must be an integer of at least 1")
    refuses(lambda: best(4, lambda n: jf.FixedSteps(jf.UniformGrid(n), eta=1.0)), "sampler of the ODE.*eta=1.0.*'mine'")
    refuses(lambda: best(4, lambda n: jf.AdaptiveSteps()), "with fixed steps.*Got jf.AdaptiveSteps.*'mine'")
    refuses(lambda: best(4, heun(2)), "a function from the number of steps.*'mine'", TypeError)
    guided, args = jf.Guided(jf.Field(lambda t, x, a: x, jf.CondOT(), "velocity"), 0), jf.Args(1, scale=2.0)
    refuses(lambda: search.best_sampler(guided, KEY, 5, (2,), args=args), "a sampler of this field takes. Got 5")


@pytest.mark.slow
def test_a_candidate_may_be_a_grid_and_takes_one_evaluation_for_the_last_step():
    """Of `n` steps the last is the data prediction where the field predicts the data: `2 (n - 1) + 1` for Heun."""
    field = jf.Field(FIELD.data, jf.CondOT(), "data")
    candidates = {"Euler": jf.UniformGrid, "Heun": lambda n: jf.FixedSteps(jf.UniformGrid(n), dfx.Heun())}
    best = search.best_sampler(field, KEY, 5, (2,), candidates=candidates, fit=0, num=8, progress=False)
    steps = {"Euler": 5, "Heun": 3}
    assert best.sampler.n == steps[best.name] and best.sampler.end == "denoise" and set(best.table) == set(candidates)
    alone = search.best_sampler(
        field, KEY, 1, (2,), candidates={"Heun": candidates["Heun"]}, fit=0, num=8, progress=False
    )
    assert alone.sampler.n == 1


@pytest.mark.slow
@pytest.mark.parametrize(("interval", "nfe", "n"), [(None, 12, 6), ((0.3, 0.7), 11, 8)])
def test_guidance_of_a_search_has_a_scale_for_each_sample_and_an_interval(interval, nfe, n):
    """Two calls a step, or one and three more at 3/8, 4/8 and 5/8."""
    world = jf.distributions.LabelledMixture(MIXTURE)
    field = jf.Guided(world.field(jf.CondOT()), world.null, interval=interval)
    best = search.best_sampler(
        field, KEY, nfe, (2,), candidates={"mine": lambda n: adams(jf.UniformGrid(n))}, num=8, fit=0, progress=False,
        args=jf.Args(jnp.arange(8) % 3, scale=jnp.linspace(1.0, 3.0, 8)), args_in_axes=jf.Args(0, scale=0),
    )  # fmt: skip
    assert best.sampler.n == n
    assert jf.sample(field, KEY, (2,), best.sampler, args=jf.Args(1, scale=2.0)).nfe == best.nfe == nfe


@pytest.mark.slow
def test_what_a_search_refuses():
    fit = lambda field=FIELD, n=4, **options: search.optimize_times(field, KEY, n, (2,), **options)  # noqa: E731
    refuses(lambda: fit(n=0), "n must be an integer of at least 1. Got 0")
    refuses(lambda: fit(num=0), "num must be an integer")
    refuses(lambda: fit(iterations=2.5), "iterations must be an integer")
    refuses(lambda: fit(t0=0.5, t1=0.5), "0 <= t0 < t1 <= 1")
    refuses(lambda: fit(jf.Field(lambda t, x, a: x, jf.CondOT(), "noise")), "start a little later")
    refuses(lambda: search.optimize_times(FIELD, None, 4, (2,)), "key=")
    refuses(lambda: search.optimize_times(FIELD.velocity, KEY, 4, (2,)), "field must be AbstractField", TypeError)
    nan = jf.Field(lambda t, x, a: x * jnp.nan, jf.CondOT(), "velocity")
    refuses(lambda: fit(nan, num=2, iterations=1, progress=False), "samples are finite")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "predicts", "nfe"), [(jf.CondOT(), "velocity", 10), (jf.VE(0.002, 80.0), "data", 8)], ids=["CondOT", "VE"]
)
def test_a_fit_beats_every_fixed_rule_of_low_order(path, predicts, nfe, monkeypatch):
    """Of orders up to 4, as for networks: on a field this smooth a grid fitted to order 6 needs no other weights."""
    rules, high = search.best._defaults, ("recommended", "Adams PC 5", "Adams PC 6")
    monkeypatch.setattr(
        search.best,
        "_defaults",
        lambda *args: {name: rule for name, rule in rules(*args).items() if not name.startswith(high)},
    )
    field = jf.Field(getattr(MIXTURE.field(path), predicts), path, predicts)
    best = search.best_sampler(field, KEY, nfe, (2,), fit=2, num=256, progress=False)
    fitted = [name for name in best.table if name.endswith("fitted")]
    assert best.name == fitted[0] and best.name.endswith("times and weights fitted") and len(fitted) == 3
    fixed = min(error for name, error in best.table.items() if name not in fitted)
    assert best.table[best.name] < fixed / 2  # measured: 5.0 and 3.5
    assert (drawn(field, HELD_OUT, None, best.sampler).nfe == nfe).all()
