"""Couplings: the optimum, the entropic plan, labels, and what a step does with them."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from references import refuses
from scipy.optimize import linear_sum_assignment

import jflow as jf

KEY, N = jr.key(0), 24
PLANS = {
    "independent": jf.train.Independent(),
    "assignment": jf.train.Assignment(),
    "sinkhorn": jf.train.Sinkhorn(0.1),
}
COUPLED = jf.CondOT(source=jf.Normal(coupled=True))


def points(seed, n=N, d=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), (rng.normal(size=(n, d)) * 2 + 1).astype(np.float32)


def squares(x0, x1):
    return ((np.float64(x0)[:, None] - np.float64(x1)[None]) ** 2).sum(-1)


def unit(x0, x1):
    """The root mean square of what depends on both rows of a pair."""
    return np.sqrt(np.mean((2 * (x0 - x0.mean(0)) @ (x1 - x1.mean(0)).T) ** 2))


def test_an_assignment_costs_what_scipy_finds():
    """On clouds, on equal points (ties), on points of a lattice, far from the origin, and of one row."""
    cases = [points(0), points(1), (points(2)[0],) * 2, tuple(np.round(x) for x in points(3))]
    cases += [tuple(x + 1000 for x in points(4)), tuple(np.zeros_like(x) for x in points(5)), points(6, 1)]
    for x0, x1 in cases:
        pairs, cost = jf.train.couple(KEY, x0, x1), squares(x0, x1)
        assert sorted(pairs.i0.tolist()) == pairs.i1.tolist() == list(range(len(x0)))
        assert pairs.converged and pairs.partners == 1
        best = cost[linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(cost[pairs.i0, pairs.i1].sum(), best, rtol=2e-5, atol=1e-6)


def test_the_optimum_on_the_line_is_sorted_and_that_of_a_gradient_is_known():
    x0, x1 = points(7, d=1)
    i0 = jf.train.couple(KEY, x0, x1).i0
    assert (np.argsort(x0[i0, 0]) == np.argsort(x1[:, 0])).all()
    x0, _ = points(8)
    moved = x0 @ np.diag([3.0, 1.0, 0.2]).astype(np.float32) + 5  # the gradient of a convex function: Brenier's map
    order = np.random.default_rng(9).permutation(N)
    assert (jf.train.couple(KEY, x0, moved[order]).i0 == order).all()


@pytest.mark.slow
def test_a_plan_does_not_depend_on_units_nor_on_the_origin():
    x0, x1 = points(10)
    for plan in PLANS.values():
        first = jf.train.couple(KEY, x0, x1, plan)
        other = jf.train.couple(KEY, 1e3 * x0 + 50, 1e3 * x1 + 50, plan)
        assert (first.i0 == other.i0).all(), plan
        np.testing.assert_allclose(first.partners, other.partners, rtol=1e-3)


def entropic(cost, epsilon):
    """The plan in float64, by scaling the kernel."""
    kernel = np.exp(-cost / epsilon)
    a, b = np.ones(len(cost)), np.ones(len(cost))
    for _ in range(20_000):
        a = 1 / (kernel @ b)
        b = 1 / (kernel.T @ a)
    return a[:, None] * kernel * b


def test_sinkhorn_draws_from_the_entropic_plan():
    x0, x1 = points(11, n=5)
    plan = entropic(squares(x0, x1) / unit(x0, x1), 0.2)
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-9)
    sinkhorn, n = jf.train.Sinkhorn(0.2, tolerance=1e-5), 20_000
    pairs = jax.vmap(lambda key: jf.train.couple(key, x0, x1, sinkhorn))(jr.split(KEY, n))
    assert pairs.converged.all() and (pairs.i1 == jnp.arange(5)[None]).all()
    share = np.stack([(np.asarray(pairs.i0) == i).mean(0) for i in range(5)])
    assert (np.abs(share - plan) <= 4.5 * np.sqrt(plan * (1 - plan) / n) + 1e-4).all()
    np.testing.assert_allclose(pairs.partners, np.exp(-(plan * np.log(plan)).sum(0).mean()), rtol=1e-4)


def test_plans_do_not_depend_on_where_the_batches_lie():
    """A shift changes no balanced plan; the cost of it far away is that of the plan of centred batches."""
    x0, x1 = points(12)
    for plan in (jf.train.Assignment(), jf.train.Sinkhorn(0.05)):
        near = jf.train.couple(KEY, x0, x1, plan)
        for shift in (1e3, 1e5):
            far = jf.train.couple(KEY, x0, x1 + np.float32(shift), plan)
            costs = [squares(x0, x1)[pairs.i0, pairs.i1].mean() for pairs in (near, far)]
            assert far.converged and abs(costs[1] / costs[0] - 1) < 0.02, (plan, shift)


def test_sinkhorn_lies_between_the_assignment_and_chance():
    x0, x1 = points(12)
    sharp = jf.train.couple(KEY, x0, x1, jf.train.Sinkhorn(1e-3, max_iterations=20_000))
    cost = squares(x0, x1) / unit(x0, x1)
    over = cost[sharp.i0, sharp.i1].mean() - cost[linear_sum_assignment(cost)].mean()
    assert sharp.converged and sharp.partners < 1.2 and over < 3e-3 * np.log(N)  # the plan's own is below epsilon log n
    blunt = jf.train.couple(KEY, x0, x1, jf.train.Sinkhorn(100.0))
    assert blunt.converged and blunt.partners > N - 0.1
    assert jf.train.couple(KEY, x0, x1, jf.train.Independent()).partners == N


def test_a_plan_that_was_not_found_says_so():
    x0, x1 = points(12)
    assert not jf.train.couple(KEY, x0, x1, jf.train.Sinkhorn(1e-3, max_iterations=2)).converged
    for bad in (np.nan, np.inf, 1e30):
        broken = x1.copy()
        broken[3, 0] = bad
        for plan in PLANS.values():
            pairs = jf.train.couple(KEY, x0, broken, plan)
            assert not pairs.converged and {*pairs.i0.tolist()} <= {*range(N)}
        assert sorted(jf.train.couple(KEY, x0, broken).i0.tolist()) == list(range(N))
    label, huge = np.arange(N), jf.train.Assignment(1e38)  # whose sums are infinite
    pairs = jf.train.couple(KEY, x0, x1, huge, labels=(label, label[::-1]))
    assert not pairs.converged and sorted(pairs.i0.tolist()) == list(range(N))


def test_a_large_penalty_mixes_no_label():
    """And so the noise of a label is what it was, where without it the labels part the noise among them."""
    label = np.arange(N) % 2
    x0, x1 = points(13)
    x1 = x1 + 8 * label[:, None].astype(np.float32)
    free = jf.train.couple(KEY, x0, x1)
    assert not (np.sort(x0[free.i0][label == 1], 0) == np.sort(x0[label == 1], 0)).all()
    for plan in (jf.train.Assignment(1e3), jf.train.Sinkhorn(0.1, 1e3)):
        pairs = jf.train.couple(KEY, x0, x1, plan, labels=(label, label))
        assert pairs.converged and (label[pairs.i0] == label[pairs.i1]).all(), plan
    pairs = jf.train.couple(KEY, x0, x1, jf.train.Assignment(1e3), labels=(label, label))
    for c in (0, 1):  # within a label it is the optimum
        own, cost = label == c, squares(x0[label == c], x1[label == c])
        got = squares(x0, x1)[pairs.i0, pairs.i1][own].sum()
        np.testing.assert_allclose(got, cost[linear_sum_assignment(cost)].sum(), rtol=1e-5)
    small = jf.train.couple(KEY, x0, x1, jf.train.Assignment(1e-6), labels=(label[:, None], label[:, None]))
    assert (small.i0 == free.i0).all()


@pytest.mark.slow
def test_events_of_any_structure_and_a_plan_of_ones_own():
    class Rolled(jf.train.AbstractPlan):
        penalty: ClassVar[None] = None

        def rows(self, key, cost):
            return jnp.roll(jnp.arange(len(cost)), 1), jnp.array(True), jnp.array(1.0)

    x0, x1 = points(14, d=4)
    trees = [{"a": x[:, :1], "b": x[:, 1:].reshape(N, 3, 1)} for x in (x0, x1)]
    assert (jf.train.couple(KEY, *trees).i0 == jf.train.couple(KEY, x0, x1).i0).all()
    assert jf.train.couple(KEY, x0, x1, Rolled()).i0.tolist() == [N - 1, *range(N - 1)]


def test_one_key_decides_and_numbers_do_not_retrace():
    x0, x1 = points(15)
    for plan in (PLANS["independent"], PLANS["sinkhorn"]):
        first, again, other = (jf.train.couple(key, x0, x1, plan).i0 for key in (KEY, KEY, jr.key(1)))
        assert (first == again).all() and not (first == other).all()
    traces = []

    @eqx.filter_jit
    def run(plan):
        traces.append(1)
        return jf.train.couple(KEY, x0, x1, plan, labels=(x0[:, 0], x1[:, 0])).partners

    assert run(jf.train.Sinkhorn(0.1, 1.0)) < run(jf.train.Sinkhorn(0.5, 2.0)) and len(traces) == 1


def exact(m=2.0, s=0.5):
    """The velocity of the optimal map `m + s x0` of N(0, 1) to N(m, s^2), which is straight."""

    def net(t, x, args):
        return m + (s - 1) * (x - t * m) / (1 - t + t * s)

    return jf.Field(Scaled(net, jnp.ones(())), COUPLED, "velocity")


class Scaled(eqx.Module):
    net: object = eqx.field(static=True)
    weight: jax.Array

    def __call__(self, t, x, args):
        return self.weight * self.net(t, x, args)


def loss(field, key, example):
    value = jf.matching_loss(field, key, example["x"], x0=example["x0"])
    return value, {"converged": example["converged"]}


OPTIMIZER = optax.sgd(0.0)


def start():
    return jf.train.init(exact(), OPTIMIZER, ema=None)


def line(seed, n=256):
    return {"x": (2 + 0.5 * np.random.default_rng(seed).normal(size=(n, 1))).astype(np.float32)}


@pytest.mark.slow
def test_pairs_of_an_assignment_lie_on_straight_lines():
    """The straight field has almost no loss with them, and that of chance without: E (2 s x0 ...)^2 is of order s."""
    got = {name: jf.train.step(start(), loss, KEY, line(0), couple=name)[1] for name in PLANS}
    assert got["assignment"].loss < 0.02 < 0.2 < got["independent"].loss
    assert got["assignment"].loss < got["sinkhorn"].loss < got["independent"].loss
    assert all(info.metrics["converged"] == 1 for info in got.values())


@pytest.mark.slow
def test_a_step_couples_the_whole_batch_by_a_key_of_its_own():
    batch = line(1)
    by_name = jf.train.step(start(), loss, KEY, batch, couple="assignment")[1]
    by_hand = jf.train.step(start(), loss, KEY, jf.train.Coupling()(jr.fold_in(KEY, 256), batch))[1]
    np.testing.assert_allclose(by_name.loss, by_hand.loss, rtol=1e-3)
    fitted = jf.train.fit(start(), loss, lambda i: batch, steps=2, key=KEY, couple="assignment", progress=False)
    first = jf.train.step(start(), loss, jr.fold_in(KEY, np.uint32(0)), batch, couple="assignment")[1]
    assert fitted[1][0] == np.float32(first.loss) != np.float32(fitted[1][1])


@pytest.mark.slow
def test_a_coupling_may_be_an_object_or_any_function():
    batch, coupling = line(1), jf.train.Coupling()
    by_name, by_object, by_function = (
        jf.train.step(start(), loss, KEY, batch, couple=couple)[1].loss
        for couple in ("assignment", coupling, lambda key, batch: coupling(key, batch))
    )
    np.testing.assert_allclose([by_object, by_function], by_name, rtol=1e-3)


def test_a_batch_keeps_its_rows_and_gets_noise():
    batch = {"x": points(16)[1], "label": np.arange(N), "more": {"name": np.arange(N)}}
    for plan in PLANS.values():
        got = jf.train.Coupling(plan)(KEY, batch)
        assert set(got) == {*batch, "x0", "converged"} and got["label"] is batch["label"] and got["x"] is batch["x"]
        assert got["x0"].shape == (N, 3) and got["converged"].all()
    one, two = (np.sort(jf.train.Coupling(PLANS[name])(KEY, batch)["x0"], 0) for name in ("assignment", "independent"))
    assert (one == two).all() and abs(one).max() > 1  # the same draws in another order
    by_label = jf.train.Coupling(jf.train.Assignment(1e3), data="y", label="more")
    assert by_label(KEY, {"y": batch["x"], "more": np.zeros(N)})["x0"].shape == (N, 3)


@pytest.mark.slow
def test_noise_is_of_the_source_of_the_field():
    """Clouds of points with their centre at zero."""

    def centre(field, key, example):
        return field.net.weight * jnp.sum(jnp.abs(example["x0"].mean(0))), jnp.mean(jnp.abs(example["x0"]))

    path = jf.CondOT(source=jf.Normal(jf.ZeroCentre(), coupled=True))
    field = jf.Field(Scaled(lambda t, x, args: x, jnp.ones(())), path, "velocity")
    clouds = {"x": points(17, d=12)[0].reshape(N, 4, 3)}
    _, info = jf.train.step(jf.train.init(field, OPTIMIZER, ema=None), centre, KEY, clouds, couple="assignment")
    assert info.loss < 1e-5 and info.metrics > 0.5


def test_given_pairs_are_paired_anew():
    x0, x1 = points(18)
    got = jf.train.Coupling()(KEY, {"x": x1, "x0": x0})["x0"]
    assert (got == x0[jf.train.couple(KEY, x0, x1).i0]).all()


@pytest.mark.slow
def test_data_parallel_couples_the_whole_batch():
    """Shares of 32 rows, each coupled by itself, would have several times the loss."""
    mesh = jax.make_mesh((8,), ("data",))
    one, many = (jf.train.step(start(), loss, KEY, line(2), couple="assignment", mesh=m)[1] for m in (None, mesh))
    np.testing.assert_allclose(one.loss, many.loss, rtol=1e-2)


def test_a_batch_that_is_not_finite_moves_nothing():
    batch = line(3)
    batch["x"][5] = np.nan
    state, info = jf.train.step(start(), loss, KEY, batch, couple="assignment")
    assert not info.finite and info.metrics["converged"] == 0 and state.field.net.weight == 1


def test_errors_say_the_rule():
    x0, x1 = points(19)
    label = np.zeros(N)
    alone = jf.train.init(jf.Field(exact().net, jf.CondOT(), "velocity"), OPTIMIZER)
    given = jf.train.init(jf.Field(exact().net, jf.CondOT(source=jf.GIVEN), "velocity"), OPTIMIZER)
    penalised = jf.train.Assignment(1.0)
    for call, fragment in [
        (lambda: jf.train.step(alone, loss, KEY, line(4), couple="assignment"), r"jf.Normal\(coupled=True\)"),
        (lambda: jf.train.step(given, loss, KEY, line(4), couple="assignment"), "x0 must come with the data"),
        (lambda: jf.train.step(start(), loss, KEY, line(4)["x"], couple="assignment"), "must be a dictionary with 'x'"),
        (lambda: jf.train.Coupling(data="y")(KEY, {"x": x1}), r"with 'y'. Got the entries \['x'\]"),
        (lambda: jf.train.Coupling(penalised)(KEY, {"x": x1}), "with 'x' and 'label'"),
        (lambda: jf.train.couple(KEY, x0, x1[:-1]), "the same structure and shapes"),
        (lambda: jf.train.couple(KEY, x0, {"a": x1}), "the same structure and shapes"),
        (lambda: jf.train.couple(KEY, 0.0, 1.0), "a common leading axis"),
        (lambda: jf.train.couple(KEY, x0, x1, labels=(label, label)), "a plan that has a penalty"),
        (lambda: jf.train.couple(KEY, x0, x1, penalised), "a plan that has a penalty"),
        (lambda: jf.train.couple(KEY, x0, x1, penalised, labels=(label, label[1:])), "labels must be a pair"),
        (lambda: jf.train.couple(KEY, x0, np.zeros((N, 3), np.uint8)), "floating-point type"),
        (lambda: jf.train.Sinkhorn(0.0), "epsilon must be a positive number"),
        (lambda: jf.train.Sinkhorn(0.1, -1.0), "penalty must be a positive number"),
        (lambda: jf.train.Sinkhorn(max_iterations=0), "max_iterations must be an integer"),
        (lambda: jf.train.Assignment(np.inf), "penalty must be a positive number"),
    ]:
        refuses(call, fragment)
    for couple in ("nearest", 3):
        refuses(lambda c=couple: jf.train.step(start(), loss, KEY, line(4), couple=c), "'sinkhorn'", TypeError)


@pytest.mark.slow
def test_as_large_as_a_minibatch():
    """256 rows of 784 numbers: scipy's optimum to the rounding of float32."""
    x0, x1 = points(20, 256, 784)
    pairs, cost = jf.train.couple(KEY, x0, x1), squares(x0, x1)
    np.testing.assert_allclose(cost[pairs.i0, pairs.i1].sum(), cost[linear_sum_assignment(cost)].sum(), rtol=1e-6)
    assert sorted(pairs.i0.tolist()) == list(range(256))
