"""Grid rules: their times, their static facts, and what a jit sees of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import PATHS, refuses, unchecked

import jflow as jf

VE = jf.VE(0.002, 80.0)
RULES = {  # each on a path that has all its bounds, from t = 0 to t = 1
    "uniform": (jf.UniformGrid, VE),
    "cosine": (jf.CosineGrid, VE),
    "ratio": (jf.RatioGrid, PATHS["root"]),
    "ratio on VP": (jf.RatioGrid, jf.VP()),
    "ratio on VE": (jf.RatioGrid, VE),
    "eased": (jf.EasedGrid, jf.VP()),
    "log-SNR": (jf.LogSNRGrid, VE),
    "poly": (lambda n: jf.LogSNRGrid(n, rho=3.0), jf.VE(0.01, 50.0)),
    "karras": (jf.KarrasGrid, VE),
    "shifted": (lambda n: jf.ShiftedGrid(jf.UniformGrid(n), 3.0), PATHS["Cosine"]),
    "shifted back": (lambda n: jf.ShiftedGrid(jf.EasedGrid(n), 0.2), jf.LinearVP()),
}
SWEPT = {  # rules with numbers in them, and other numbers
    "uniform": (jf.UniformGrid(6, 0.1, 0.9), jf.UniformGrid(6, 0.2, 0.7)),
    "decreasing": (jf.UniformGrid(6, 0.9, 0.1), jf.UniformGrid(6, 0.8, 0.3)),
    "uniform from 0": (jf.UniformGrid(6, 0.0, 0.9), jf.UniformGrid(6, 0.0, 0.7)),
    "karras": (jf.KarrasGrid(6, 0.01, 50.0, 7.0), jf.KarrasGrid(6, 0.02, 60.0, 5.0)),
    "log-SNR": (jf.LogSNRGrid(6, -8.0, 8.0), jf.LogSNRGrid(6, -7.0, 9.0, 2.0)),
    "eased": (jf.EasedGrid(6), jf.EasedGrid(6, 1.0, 1.7)),
    "shifted": (jf.ShiftedGrid(jf.EasedGrid(6), 3.0), jf.ShiftedGrid(jf.EasedGrid(6, 0.8), 2.0)),
}


def arrays(tree):
    """The numbers of a rule as arrays, as the front of a verb makes them."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)


def facts(rule):
    return rule.starts_at_zero, rule.ends_at_one, rule.repeats_last, rule.direction, rule.within


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_every_grid_ends_at_its_ends(name):
    """To the last bit, for one step too, and in between strictly increasing."""
    make, path = RULES[name]
    for n in (1, 50):
        rule = make(n)
        times = np.asarray(eqx.filter_jit(rule)(path))
        assert rule.n == n and times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1
        assert rule.starts_at_zero and rule.ends_at_one and rule.within and rule.direction == (True, False)
        assert (np.diff(times[:-1] if rule.repeats_last else times) > 0).all()
        np.testing.assert_allclose(rule.times(path), times, atol=1e-6)
    for n in (0, -3, 2.0, "8", True):
        with unchecked(), pytest.raises(ValueError, match="n must be an integer of at least 1"):
            make(n)


def test_uniform_grids_have_one_point_more_than_steps():
    for n in (1, 2, 7, 1000):
        times = jf.UniformGrid(n).times()
        assert times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1 and times.dtype == jnp.float32
    np.testing.assert_allclose(np.diff(jf.UniformGrid(8)(jf.CondOT())), 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(jf.UniformGrid(4, 2.0, -1).times(), np.linspace(2, -1, 5), atol=1e-6)
    assert jf.UniformGrid(4, t0=0.3).times()[0] == np.float32(0.3)
    for ends in ((0.5, 0.5), (None, 0.0), (1.0, None), (1, np.float32(1))):
        with pytest.raises(ValueError, match="ends of a grid must differ"):
            jf.UniformGrid(4, *ends)
    refuses(lambda: jf.UniformGrid(4, t1=float("inf")), "t1 must be a finite number")
    refuses(lambda: jf.UniformGrid(4, t0=jnp.zeros(2)), "t0 must be a single number")


def test_facts_of_a_uniform_grid():
    assert facts(jf.UniformGrid(4)) == (True, True, False, (True, False), True)
    assert facts(jf.UniformGrid(4, 0.0, 1.0)) == facts(jf.UniformGrid(4))
    assert facts(jf.UniformGrid(4, 0.2)) == (False, True, False, (True, False), True)
    assert facts(jf.UniformGrid(4, t1=jnp.array(0.9))) == (True, False, False, (True, False), True)
    assert facts(jf.UniformGrid(4, 1.0, 0.0)) == (False, False, False, (False, True), True)
    assert facts(jf.UniformGrid(4, t1=5)) == (True, False, False, (True, False), False)


def test_facts_of_levels_and_shifts():
    """A bound that is given has a finite log-SNR, so it is no end; where it lies depends on the path."""
    assert facts(jf.KarrasGrid(4)) == (True, True, True, (True, False), True)
    assert facts(jf.KarrasGrid(4, 0.002)) == (True, True, False, (True, False), True)
    assert facts(jf.KarrasGrid(4, 0.002, 80.0)) == (False, True, False, (True, False), None)
    assert facts(jf.LogSNRGrid(4)) == (True, True, False, (True, False), True)
    assert facts(jf.LogSNRGrid(4, hi=8.0)) == (True, False, False, (True, False), None)
    inner = jf.UniformGrid(4, 0.2)
    assert facts(jf.ShiftedGrid(inner, 3.0)) == (False, True, False, (True, False), None)
    assert jf.ShiftedGrid(inner, 3.0).n == 4


@pytest.mark.parametrize("name", SWEPT)
def test_a_traced_rule_keeps_its_facts_and_new_numbers_do_not_retrace(name):
    seen, path = [], PATHS["CondOT"]

    @jax.jit
    def times(rule):
        seen.append(facts(rule))
        return rule.times(path)

    first, second = SWEPT[name]
    for rule in (first, second):
        for each in (rule, arrays(rule)):  # Python's numbers and arrays of one value
            np.testing.assert_allclose(times(each), rule.times(path), rtol=1e-5, atol=1e-6)
    assert set(seen) == {facts(first)} and len(seen) == 2  # one for each kind of number


def test_a_rule_made_of_traced_numbers_says_what_it_does_not_know():
    seen = []

    def ends(low, high):
        for rule in (
            jf.UniformGrid(4, low),
            jf.UniformGrid(4, low, high),
            jf.KarrasGrid(4, low, high),
            jf.LogSNRGrid(4, low, high),
            jf.ShiftedGrid(jf.UniformGrid(4, t1=high), low),
        ):
            seen.append(facts(rule))
            rule.times(jf.CondOT())
        return low

    jax.eval_shape(ends, 0.1, 0.9)
    assert seen == [
        (None, True, False, (None, None), None),
        (None, None, False, (None, None), None),
        (False, True, False, (True, False), None),
        (False, False, False, (True, False), None),
        (True, None, False, (None, None), None),
    ]


def test_rules_print_as_code_and_compare():
    for text in (
        "UniformGrid(n=4)",
        "UniformGrid(n=4, t0=0.25, t1=2)",
        "KarrasGrid(n=18, sigma_min=0.002, sigma_max=80.0, rho=5.0)",
        "LogSNRGrid(n=4, hi=8.0)",
        "RatioGrid(n=4)",
        "CosineGrid(n=4)",
        "EasedGrid(n=4, last=1.7)",
        "ShiftedGrid(rule=UniformGrid(n=4), factor=3.0)",
    ):
        rule = eval(text, vars(jf))
        assert repr(rule) == text and rule == eval(repr(rule), vars(jf))
    assert jf.UniformGrid(4) != jf.UniformGrid(5) and jf.EasedGrid(4) != jf.EasedGrid(4, 1.1)
    assert jf.RatioGrid(4) != jf.CosineGrid(4)
    assert jf.KarrasGrid(4, 0.01, 9.0, 5.0) == jf.KarrasGrid(n=4, rho=5.0, sigma_max=9.0, sigma_min=0.01)


def test_a_rule_of_ones_own():
    class Squares(jf.AbstractGridRule):
        n: int = eqx.field(static=True)

        def times(self, path=None):
            return jnp.linspace(0.0, 1.0, self.n + 1) ** 2

    rule = Squares(2)
    assert facts(rule) == (None, None, False, (True, False), None)
    assert (rule(jf.CondOT()) == jnp.array([0.0, 0.25, 1.0])).all()


@pytest.mark.parametrize("name", ["CondOT", "VP", "VE", "root"])
def test_karras_grids_have_the_published_levels(name, x64):
    path, n, rho = PATHS[name], 18, 7.0
    times = jax.jit(lambda: jf.KarrasGrid(n, 0.01, 50.0, rho).times(path))()
    assert times.shape == (n + 1,) and times[-1] == 1
    i = np.arange(n)
    levels = (50 ** (1 / rho) + i / (n - 1) * (0.01 ** (1 / rho) - 50 ** (1 / rho))) ** rho
    got = jax.jit(jax.vmap(lambda t: path.sigma(t) / path.alpha(t)))(times[:-1])
    np.testing.assert_allclose(got, levels, rtol=1e-7)
    assert (np.diff(times) > 0).all()


def test_karras_grids_take_the_bounds_of_the_path_where_they_are_finite():
    times, one, vp = jax.jit(
        lambda: (jf.KarrasGrid(18)(VE), jf.KarrasGrid(1)(VE), jf.KarrasGrid(5, sigma_min=0.01)(jf.VP()))
    )()
    assert times[0] == 0 and times[-2] == 1 and times[-1] == 1  # the last step is the denoising one
    sigma = jax.jit(jax.vmap(VE.sigma))(times)
    published = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[:-1], published, rtol=2e-5)
    np.testing.assert_array_equal(one, [0, 1])
    assert vp[0] == pytest.approx(0, abs=1e-6)


def test_a_bound_that_the_path_does_not_have_raises_by_its_class():
    """Inside a jit too, where no value is known."""
    for rule, path, fragment in [
        (jf.KarrasGrid(5, sigma_min=0.01), jf.CondOT(), "must have sigma_max on CondOT, .* infinite at t = 0"),
        (jf.KarrasGrid(5), jf.VP(), "must have sigma_min on VP, .* infinite at t = 1"),
        (jf.LogSNRGrid(4, hi=8.0), jf.CondOT(), "must have lo on CondOT, .* infinite at t = 0"),
        (jf.LogSNRGrid(4, lo=-8.0), jf.VP(), "must have hi on VP, .* infinite at t = 1"),
    ]:
        with pytest.raises(ValueError, match=fragment):
            jax.eval_shape(rule, path)


def test_rules_that_count_in_signal_to_noise_ask_for_an_affine_path():
    for rule in (
        jf.KarrasGrid(4),
        jf.LogSNRGrid(4),
        jf.RatioGrid(4),
        jf.EasedGrid(4),
        jf.ShiftedGrid(jf.CosineGrid(4), 2),
    ):
        with pytest.raises(ValueError, match="must have an affine path"):
            rule.times()


@pytest.mark.parametrize("name", ["Cosine", "LinearVP", "VE", "quadratic"])
def test_log_snr_grids_are_equal_in_the_whole_log_snr(name, x64):
    path = PATHS[name]
    times = eqx.filter_jit(jf.LogSNRGrid(10, -6.0, 8.0))(path)
    assert times.shape == (11,)
    np.testing.assert_allclose(jax.jit(jax.vmap(path.log_snr))(times), np.linspace(-6, 8, 11), atol=1e-7)


def test_log_snr_grids_take_the_bounds_of_the_path_where_they_are_finite():
    times = jf.LogSNRGrid(4).times(jf.VE())
    np.testing.assert_allclose(times, np.linspace(0, 1, 5), atol=1e-6)  # VE is linear in log-SNR
    assert times[0] >= 0 and times[-1] <= 1


def test_poly_exponential_grids(x64):
    """`log(sigma/alpha)` as k-diffusion has it: `ramp^rho (log sigma_max - log sigma_min) + log sigma_min`."""
    for n, rho in ((10, 0.7), (10, 1.0), (1, 3.0), (7, 2.0)):
        times = jf.LogSNRGrid(n, -6.0, 8.0, rho=rho).times(jf.CondOT())
        levels = np.linspace(1, 0, n + 1) ** rho * (3.0 + 4.0) - 4.0
        np.testing.assert_allclose(np.log((1 - times) / times), levels, atol=1e-12)


def test_eased_grids_have_their_shares_in_the_ratio_clock(x64):
    n, names = 9, ("CondOT", "Cosine", "VP", "VE")

    @jax.jit
    def grids(first, last):
        times = {name: jf.EasedGrid(n, first, last)(PATHS[name]) for name in names}
        return {k: (ts, jax.vmap(lambda t, k=k: jf.RatioClock().time(PATHS[k], t))(ts)) for k, ts in times.items()}

    s = np.arange(n + 1) / n
    for first, last in ((1.2, 1.3), (1.0, 1.0), (0.7, 2.5)):
        for name, (times, tau) in grids(first, last).items():
            assert times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1, name
            shares = 1 - (1 - s**first) ** last
            np.testing.assert_allclose((tau - tau[0]) / (tau[-1] - tau[0]), shares, atol=1e-12, err_msg=name)
    assert jf.EasedGrid(1)(PATHS["VP"]).tolist() == [0, 1]
    assert (jf.EasedGrid(n)(PATHS["VP"]) == jf.EasedGrid(n, 1.2, 1.3)(PATHS["VP"])).all()
    assert np.allclose(jf.EasedGrid(n, 1, 1)(PATHS["VP"]), jf.RatioGrid(n)(PATHS["VP"]))


@pytest.mark.parametrize("name", ["CondOT", "VP", "VE", "root"])
def test_ratio_grids_are_equal_in_the_time_of_the_ratio_clock(name, x64):
    path, clock = PATHS[name], jf.RatioClock()
    times = jf.RatioGrid(9).times(path)
    taus = jax.vmap(lambda t: clock.time(path, t))(times)
    np.testing.assert_allclose(np.diff(taus), (taus[-1] - taus[0]) / 9, rtol=1e-9)
    if name == "CondOT":
        np.testing.assert_allclose(times, np.linspace(0, 1, 10), atol=1e-15)


def test_cosine_grids_grow_from_noise_to_data(x64):
    np.testing.assert_allclose(jf.CosineGrid(9).times(), 1 - np.cos(np.pi * np.arange(10) / 18), atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CondOT", "VP", "VE", "root"])
def test_a_shifted_grid_is_translated_in_log_snr(name, x64):
    path, factor = PATHS[name], 3.0
    # VP and VE have a lowest log-SNR, and VE a highest one, from which a shift leads outside
    ends = {"VP": (0.3, None), "VE": (0.3, 0.9)}.get(name, (None, None))
    rule = jf.UniformGrid(8, *ends)
    times, shifted = rule.times(path), jf.ShiftedGrid(rule, factor).times(path)
    moved = jax.vmap(path.log_snr)(shifted) - jax.vmap(path.log_snr)(times)
    inner = slice(int(rule.starts_at_zero), 9 - int(rule.ends_at_one))
    np.testing.assert_allclose(moved[inner], -2 * np.log(factor), rtol=1e-9)
    assert (np.diff(shifted) > 0).all()
    if rule.ends_at_one:
        assert shifted[-1] == 1
    if name == "CondOT":  # equation 23 of Esser et al. 2024 (arXiv:2403.03206), whose time is 1 - t
        s = 1 - np.asarray(times)
        np.testing.assert_allclose(1 - shifted, factor * s / (1 + (factor - 1) * s), rtol=1e-12, atol=1e-15)
        assert shifted[0] == 0


def test_an_end_that_would_neither_move_nor_stay_raises():
    for rule, path, end in ((jf.UniformGrid(4), jf.VP(), 0), (jf.UniformGrid(4, t0=0.3), jf.VE(), 1)):
        with pytest.raises(ValueError, match=f"an end at t = {end} must have a path whose log-SNR is infinite"):
            jax.eval_shape(jf.ShiftedGrid(rule, 3.0), path)


def test_rounding_never_turns_a_grid_around():
    paths = (jf.CondOT(), jf.VP(), jf.VE())
    grids = jax.jit(
        lambda: [(jf.LogSNRGrid(40, -80.0, 80.0)(path), jf.KarrasGrid(40, 1e-12, 1e12)(path)) for path in paths]
    )()
    for times in jax.tree.leaves(grids):
        assert (np.diff(times) >= 0).all() and np.isfinite(times).all()


def test_bad_rules_say_what_a_rule_takes():
    for build, fragment in [
        (lambda: jf.KarrasGrid(5, 80.0, 0.002), "sigma_max above sigma_min"),
        (lambda: jf.KarrasGrid(5, 100.0).times(jf.VE(0.002, 80.0)), "sigma_max above sigma_min"),
        (lambda: jf.KarrasGrid(5, 0.0, 80.0), "sigma_min must be a positive number"),
        (lambda: jf.KarrasGrid(5, -1.0), "sigma_min must be a positive number"),
        (lambda: jf.KarrasGrid(5, float("nan")), "sigma_min must be a positive number"),
        (lambda: jf.KarrasGrid(5, rho=0.0), "rho must be a positive number"),
        (lambda: jf.LogSNRGrid(4, 8.0, -8.0), "hi above lo"),
        (lambda: jf.LogSNRGrid(4, rho=-1.0), "rho must be a positive number"),
        (lambda: jf.EasedGrid(4, last=0.0), r"last must be a positive number\. Got 0\.0"),
        (lambda: jf.ShiftedGrid(jf.UniformGrid(4), 0.0), "factor must be a positive number"),
    ]:
        refuses(build, fragment)
    refuses(lambda: jf.ShiftedGrid(jnp.linspace(0, 1, 5), 2.0), "rule must be AbstractGridRule", TypeError)


def test_grids_can_be_traced_and_differentiated():
    grid = jax.jit(lambda low: jf.KarrasGrid(4, low, 80.0).times(jf.VE()))
    np.testing.assert_allclose(grid(0.002), jf.KarrasGrid(4, 0.002, 80.0).times(jf.VE()), atol=1e-6)
    slopes = jax.jacfwd(grid)(0.01)
    assert np.isfinite(slopes).all() and slopes[-2] < 0 and slopes[-1] == 0


def test_a_shift_has_a_gradient_in_its_factor():
    """On CondOT the time is `t = (1 - s)/(1 + (factor - 1) s)`, which moves by `-s (1 - s)/(1 + (factor - 1) s)^2`."""
    s = 1 - np.arange(6) / 5
    for path in (jf.CondOT(), jf.Cosine(), PATHS["root"]):
        shifted = jax.jit(jax.jacrev(lambda f, path=path: jf.ShiftedGrid(jf.UniformGrid(5), f).times(path)))
        slopes = np.asarray(shifted(3.0))
        assert np.isfinite(slopes).all() and slopes[0] == slopes[-1] == 0 and (slopes[1:-1] < 0).all()
        if isinstance(path, jf.CondOT):
            np.testing.assert_allclose(slopes, -s * (1 - s) / (1 + 2 * s) ** 2, rtol=1e-5, atol=1e-7)


def test_eased_grids_have_a_gradient_in_their_exponents():
    """With `u = 1 - s^a` the share `1 - u^b`, a time of CondOT, moves in `a` by `b u^(b - 1) s^a log(s)`."""
    slopes = jax.jit(jax.jacrev(lambda first: jf.EasedGrid(5, first, 0.9).times(jf.CondOT())))(1.2)
    s = np.arange(1, 5) / 5
    np.testing.assert_allclose(slopes[1:-1], 0.9 * (1 - s**1.2) ** -0.1 * s**1.2 * np.log(s), rtol=1e-5)
    assert slopes[0] == slopes[-1] == 0
