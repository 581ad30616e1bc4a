"""Samplers as nouns: what their constructors check, how they print and compare, and how they are written and read."""

import json

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import refuses

import jflow as jf
from jflow._code import as_code
from jflow._serialise import TABLE

GRID = jf.UniformGrid(4)
SAMPLERS = [  # each as it prints
    "jf.FixedSteps(jf.UniformGrid(4))",
    "jf.FixedSteps(jf.UniformGrid(4, 0.1, 0.9), dfx.Heun(), clock=jf.RatioClock(), end='stop')",
    "jf.FixedSteps(jf.KarrasGrid(18), dfx.Heun(), clock=jf.SigmaClock())",
    "jf.FixedSteps(jf.KarrasGrid(18, 0.002, 80.0, 5.0), dfx.Heun(), clock=jf.SigmaClock(), end='denoise')",
    "jf.FixedSteps(jf.ShiftedGrid(jf.EasedGrid(8, last=1.7), 3.0), jf.Adams(4, True), clock=jf.AngleClock())",
    "jf.FixedSteps(jf.LogSNRGrid(4, hi=8.0), jf.DPMpp(variant='midpoint'), eta=0.5)",
    "jf.FixedSteps(jf.CosineGrid(4), clock=jf.ThetaClock(), eta=jf.Ancestral(0.5), end='denoise')",
    "jf.FixedSteps(jf.RatioGrid(4), jf.Jump(0.5))",
    "jf.FixedSteps(jnp.array([0.0, 0.25, 1.0], 'float32'), eta=jnp.array([1.0, 0.5], 'float32'))",
    "jf.FixedSteps(jf.UniformGrid(4), dfx.HalfSolver(dfx.Euler()))",
    "jf.FixedSteps(jf.UniformGrid(4), jf.UniPC(3, 'bh1'))",
    "jf.FixedSteps(jf.UniformGrid(4), jf.SASolver(2, 1), eta=1.0)",
    "jf.FixedSteps(jf.UniformGrid(4), jf.EDMChurn(2.0, 0.5))",
    "jf.FixedSteps(jf.UniformGrid(4, t1=jnp.array(0.5, 'float32')), eta=jnp.array(1.0, 'float32'))",
    "jf.AdaptiveSteps()",
    "jf.AdaptiveSteps(dfx.Kvaerno5(), dfx.PIDController(0.001, 1e-06, pcoeff=0.3), t0=0.1, t1=0.9, max_steps=100)",
    "jf.AdaptiveSteps(dfx.SRA1(), clock=jf.RatioClock(), eta=1.0, dt0=0.01, adjoint=dfx.ForwardMode())",
    "jf.AdaptiveSteps(controller=dfx.StepTo(jnp.array([0.0, 0.5, 1.0], 'float32')), max_steps=None)",
    "jf.AdaptiveSteps(adjoint=dfx.RecursiveCheckpointAdjoint(10))",
]
NAMES = {"jf": jf, "dfx": dfx, "jnp": jnp}
PID = dfx.PIDController(1e-3, 1e-4)
BUILT = {  # what goes to JSON, and is not built without arguments
    "dfx.ClipStepSizeController": [dfx.ClipStepSizeController(PID, step_ts=jnp.array([0.5]))],
    "dfx.HalfSolver": [dfx.HalfSolver(dfx.Euler())],
    "dfx.PIDController": [PID, dfx.PIDController(1e-3, 1e-4, pcoeff=0.3, icoeff=0.4, dtmin=1e-5, dtmax=0.1)],
    "dfx.StepTo": [dfx.StepTo(jnp.linspace(0.0, 1.0, 4))],
    "jf.Adams": [jf.Adams(), jf.Adams(3, corrector=True)],
    "jf.Ancestral": [jf.Ancestral(0.5), jf.Ancestral(jnp.array(0.25))],
    "jf.Coloured": [jf.Coloured(jnp.array([[2.0, 0.5], [0.5, 1.0]]))],
    "jf.CosineGrid": [jf.CosineGrid(4)],
    "jf.DEIS": [jf.DEIS(), jf.DEIS(2)],
    "jf.DPMpp": [jf.DPMpp(), jf.DPMpp(3), jf.DPMpp(2, "midpoint")],
    "jf.DPMppSinglestep": [jf.DPMppSinglestep(), jf.DPMppSinglestep(3)],
    "jf.EDMChurn": [jf.EDMChurn(2.0), jf.EDMChurn(3.0, 0.1, 5.0, 1.003)],
    "jf.EasedGrid": [jf.EasedGrid(4), jf.EasedGrid(4, 0.8, jnp.array(1.5))],
    "jf.FixedSteps": [jf.FixedSteps(GRID), jf.FixedSteps([0.0, 0.3, 1.0], jf.Jump(renoise=1.0))],
    "jf.KarrasGrid": [jf.KarrasGrid(4), jf.KarrasGrid(4, 0.1, 2.0, 3.0), jf.KarrasGrid(4, sigma_max=jnp.array(7.0))],
    "jf.LogSNRGrid": [jf.LogSNRGrid(4), jf.LogSNRGrid(4, -8.0, 8.0, 2.0)],
    "jf.NonStationary": [jf.NonStationary(jnp.tril(jnp.ones((3, 3))))],
    "jf.Normal": [jf.Normal(), jf.Normal(jf.ZeroCentre()), jf.Normal(coupled=True)],
    "jf.CondOT": [jf.CondOT(), jf.CondOT(source=jf.GIVEN)],
    "jf.RatioGrid": [jf.RatioGrid(4)],
    "jf.SASolver": [jf.SASolver(), jf.SASolver(2, 1)],
    "jf.ShiftedGrid": [jf.ShiftedGrid(GRID, 3.0), jf.ShiftedGrid(jf.ShiftedGrid(GRID, 3.0), jnp.array(0.5))],
    "jf.DPM2": [jf.DPM2(), jf.DPM2("data", eta=0.5)],
    "jf.LangevinCorrector": [jf.LangevinCorrector(), jf.LangevinCorrector(dfx.Heun(), 0.1, 2)],
    "jf.TablePath": [jf.TablePath(np.linspace(0.1, 0.9, 8)), jf.TablePath([0.5, 0.99], source=jf.GIVEN)],
    "jf.UniPC": [jf.UniPC(), jf.UniPC(3, "bh1")],
    "jf.UniformGrid": [GRID, jf.UniformGrid(4, 0.25, 2), jf.UniformGrid(4, t1=jnp.array(0.5))],
    "jf.VE": [jf.VE(), jf.VE(0.01, 50.0)],
    "jf.VP": [jf.VP(), jf.VP(0.2, 15.0)],
}
FUNCTIONS = {"jf.CustomPath": jf.CustomPath(lambda t: t, lambda t: 1 - t)}  # in the table by their name alone
OPTIONS = {"heun_edm": {"sigma_min": 0.002, "sigma_max": 80.0}}


def same(a, b):
    """Whether two nouns are equal, their arrays to the last bit."""
    return type(a) is type(b) and bool(a == b)


# --------------------------------------------------------------------------------------------------- constructors


@pytest.mark.parametrize("times", [[0, 0.5, 1], (0.0, 0.5, 1.0), np.array([0, 0.5, 1]), jnp.array([0.0, 0.5, 1.0])])
def test_times_may_be_any_sequence_of_numbers(times):
    sampler = jf.FixedSteps(times)
    assert isinstance(sampler.times, jax.Array) and sampler.times.dtype == "float32" and sampler.n == 2
    assert same(sampler, jf.FixedSteps([0.0, 0.5, 1.0]))
    traced = jax.eval_shape(lambda t: jf.FixedSteps([0.0, t, 1.0]).times, 0.5)
    assert traced.shape == (3,)


def test_an_array_is_known_inside_jit_and_a_traced_one_is_not():
    seen = []

    def look(times):
        for sampler in (jf.FixedSteps(times), jf.FixedSteps([0.0, 1.0]), jf.FixedSteps(np.array([0.1, 0.9, 0.9]))):
            facts = sampler.facts
            seen.append((facts.starts_at_zero, facts.ends_at_one, facts.repeats_last, facts.increases, facts.within))
        return times

    jax.eval_shape(look, jnp.zeros(3))
    assert seen == [(None,) * 5, (True, True, False, True, True), (False, False, True, True, True)]


def test_the_facts_of_a_rule_and_of_its_array_agree():
    path = jf.VE(0.01, 50.0)
    for rule in (
        GRID,
        jf.UniformGrid(4, 0.1),
        jf.KarrasGrid(4),
        jf.KarrasGrid(4, 0.02),
        jf.LogSNRGrid(4),
        jf.EasedGrid(4),
    ):
        known, seen = jf.FixedSteps(rule).facts, jf.FixedSteps(rule.times(path)).facts
        assert known[:4] == seen[:4] and known.within in (seen.within, None), rule
    assert jf.FixedSteps(jf.UniformGrid(4, 1.0, 0.0)).facts.decreases is True
    assert jf.FixedSteps([1.0, 0.5]).facts.decreases is True


def test_facts_of_adaptive_steps():
    assert jf.AdaptiveSteps().facts[:6] == (True, True, False, True, False, True)
    assert jf.AdaptiveSteps(t0=0.1, t1=0.9).facts[:6] == (False, False, False, True, False, True)
    assert jf.AdaptiveSteps(t0=1.0, t1=0.0).facts[:6] == (False, False, False, False, True, True)
    assert jf.AdaptiveSteps(t1=2.0).facts.within is False
    seen = []
    jax.eval_shape(lambda t: seen.append(jf.AdaptiveSteps(t1=t).facts[:6]) or t, 0.5)
    assert seen == [(True, None, False, None, None, None)]


def test_a_bare_grid_is_short_for_fixed_steps():
    field, x = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT()), jnp.ones(2)
    runs = [jf.decode(field, x, grid).x for grid in (GRID, jf.FixedSteps(GRID), GRID.times(), GRID.times().tolist())]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


FIXED = [
    ((0.5,), {}, ValueError, r"a vector of at least two times .* Got shape \(\); n steps are jflow\.UniformGrid\(n\)"),
    ((32,), {}, ValueError, r"a vector of at least two times .* jflow\.UniformGrid\(n\)"),
    (([0.5],), {}, ValueError, r"at least two times .* Got shape \(1,\)"),
    ((np.zeros((2, 3)),), {}, ValueError, "at least two times"),
    (("uniform",), {}, TypeError, "times must be a grid rule, .* Got 'uniform'"),
    ((jf.UniformGrid,), {}, TypeError, "times must be a grid rule"),
    ((None,), {}, (TypeError, ValueError), "must be"),
    (([0.0, np.nan, 1.0],), {}, ValueError, "must be finite"),
    (([0.0, np.inf],), {}, ValueError, "must be finite"),
    (([0.0, 0.6, 0.5, 1.0],), {}, ValueError, r"increase strictly, .* Got steps between -0\.1 and 0\.6"),
    (([0.0, 0.5, 0.5, 1.0],), {}, ValueError, "increase strictly"),
    (([0.5, 0.5],), {}, None, ""),  # one step, whose last point stands twice
    ((GRID, dfx.Heun), {}, TypeError, "solver must be AbstractSolver"),
    ((GRID, "heun"), {}, TypeError, "solver must be .* Got 'heun'"),
    ((GRID, dfx.ImplicitEuler()), {}, ValueError, r"explicit solver\. Got ImplicitEuler, .*diffrax\.StepTo\(times\)"),
    ((GRID,), {"end": "denoised"}, ValueError, "end must be 'denoise' or 'stop'.* Got 'denoised'"),
    ((GRID,), {"end": dfx.Euler()}, ValueError, "end must be 'denoise' or 'stop'"),
    ((GRID, dfx.Heun(), jf.RatioClock()), {}, TypeError, "positional"),
    ((GRID,), {"steps": 3}, TypeError, "steps"),
    ((GRID,), {"eta": [1.0, 0.5]}, ValueError, "one value for each of the 4 steps. Got 2 values"),
    ((GRID,), {"eta": [1.0, "a"]}, TypeError, "eta must be a number"),
    ((GRID,), {"eta": (1.0, 0.5, 0.0, 1.0)}, None, ""),
    ((GRID,), {"eta": np.ones(3)}, ValueError, "one value for each of the 4 steps. Got 3 values"),
    ((GRID,), {"eta": np.ones(4)}, None, ""),
]
ADAPTIVE = [
    ((dfx.Tsit5,), {}, TypeError, "solver must be AbstractSolver"),
    ((jf.Jump(),), {}, TypeError, "solver must be AbstractSolver"),
    ((None, dfx.PIDController), {}, TypeError, "controller must be AbstractStepSizeController"),
    ((None, 1e-3), {}, TypeError, r"controller must be .* Got 0\.001"),
    ((None, PID), {"rtol": 1e-3}, ValueError, "rtol and atol must stand without controller="),
    ((None, PID), {"atol": 1e-3}, ValueError, "rtol and atol must stand without controller="),
    ((), {"t0": np.nan}, ValueError, "t0 must be a finite number"),
    ((), {"t1": np.inf}, ValueError, "t1 must be a finite number"),
    ((), {"t0": np.zeros(2)}, ValueError, "t0 must be a single number"),
    ((), {"dt0": -0.1}, ValueError, "dt0 must be positive"),
    ((), {"max_steps": 0}, ValueError, "max_steps must be an integer of at least 1"),
    ((), {"max_steps": 2.5}, ValueError, "max_steps must be an integer of at least 1"),
    ((), {"max_steps": None}, None, ""),
    ((), {"eta": np.ones(4)}, ValueError, r"eta of adaptive steps must be a number\. .* take jflow\.FixedSteps"),
    ((), {"eta": jf.Ancestral(0.5)}, ValueError, "eta of adaptive steps must be a number"),
    ((), {"adjoint": dfx.BacksolveAdjoint()}, ValueError, r"adjoint must keep .* Backsolve.* take diffrax\.DirectA"),
    ((), {"end": "stop"}, TypeError, "end"),
    ((), {"t0": 0.5, "t1": 0.5}, None, ""),  # the identity
]
BOTH = [
    ({"clock": jf.SigmaClock}, TypeError, "clock must be AbstractClock, .* make an object of it"),
    ({"diffusion": 0.5}, TypeError, r"diffusion must be a function .* Got 0\.5"),
    ({"diffusion": lambda t: t, "eta": 1.0}, ValueError, "must stand without eta="),
    (
        {"diffusion": lambda t: t, "clock": jf.RatioClock()},
        ValueError,
        "path's own time: it must stand .* without another",
    ),
    ({"diffusion": lambda t: t, "clock": jf.PathClock()}, None, ""),
    ({"eta": -0.5}, ValueError, "eta must be at least 0 .* Got -0.5"),
    ({"eta": np.nan}, ValueError, "eta must be at least 0"),
    ({"eta": np.inf}, ValueError, "eta must be at least 0"),
    ({"eta": np.ones((4, 1))}, ValueError, "eta must be at least 0 .* a value a step or one"),
    ({"eta": lambda t: t}, TypeError, "eta must be a number, .* Got <function"),
    ({"eta": "ancestral"}, TypeError, "eta must be a number, .* Got 'ancestral'"),
    ({"eta": 0}, None, ""),
]


def check(make, kind, fragment):
    if kind is None:
        make()
    else:
        refuses(make, fragment, kind)


@pytest.mark.parametrize(("args", "options", "kind", "fragment"), FIXED)
def test_fixed_steps_are_checked_where_they_are_built(args, options, kind, fragment):
    check(lambda: jf.FixedSteps(*args, **options), kind, fragment)


@pytest.mark.parametrize(("args", "options", "kind", "fragment"), ADAPTIVE)
def test_adaptive_steps_are_checked_where_they_are_built(args, options, kind, fragment):
    check(lambda: jf.AdaptiveSteps(*args, **options), kind, fragment)


@pytest.mark.parametrize(("options", "kind", "fragment"), BOTH)
def test_the_noise_and_the_clock_are_checked_in_both(options, kind, fragment):
    for make in (lambda: jf.FixedSteps(GRID, **options), lambda: jf.AdaptiveSteps(**options)):
        check(make, kind, fragment)


def test_checks_hold_inside_jit():
    for make, fragment in [
        (lambda t: jf.FixedSteps(GRID, eta=-1.0), "eta must be at least 0"),
        (lambda t: jf.FixedSteps(jnp.stack([t, t, t]), eta=jnp.stack([t])), "for each of the 2 steps"),
        (lambda t: jf.FixedSteps(t), "at least two times"),
        (lambda t: jf.AdaptiveSteps(t1=np.inf, eta=t), "t1 must be a finite number"),
    ]:
        refuses(lambda make=make: jax.eval_shape(lambda t: eqx.filter(make(t), eqx.is_array), 0.5), fragment)


def test_rtol_and_atol_are_short_for_a_controller():
    assert same(jf.AdaptiveSteps(rtol=1e-3), jf.AdaptiveSteps(controller=dfx.PIDController(1e-3, 1e-5)))
    assert same(jf.AdaptiveSteps(atol=1e-3), jf.AdaptiveSteps(controller=dfx.PIDController(1e-5, 1e-3)))
    assert jf.AdaptiveSteps().controller is None


def test_a_number_that_is_swept_is_a_float():
    assert same(jf.FixedSteps(GRID, eta=1), jf.FixedSteps(GRID, eta=1.0))
    assert same(jf.AdaptiveSteps(eta=1), jf.AdaptiveSteps(eta=1.0))


def test_a_sampler_is_final_and_frozen():
    sampler = jf.FixedSteps(GRID)
    with pytest.raises(AttributeError):
        sampler.eta = 1.0
    assert sampler.n == 4 and jf.FixedSteps([0.0, 0.5, 1.0]).n == 2


# ---------------------------------------------------------------------------------------------- printed and compared


@pytest.mark.parametrize("text", SAMPLERS)
def test_a_sampler_prints_as_the_code_that_makes_it(text):
    sampler = eval(text, NAMES)
    assert repr(sampler) == text
    assert same(eval(repr(sampler), NAMES), sampler)


def test_a_traced_sampler_prints_too():
    seen = []
    jax.eval_shape(lambda t: seen.append(repr(jf.FixedSteps(jf.UniformGrid(4, t1=t), eta=t))) or t, 0.5)
    assert seen == ["jf.FixedSteps(jf.UniformGrid(4, t1=<float32[], traced>), eta=<float32[], traced>)"]


def test_samplers_of_other_parts_are_not_equal():
    made = [eval(text, NAMES) for text in SAMPLERS]
    for i, one in enumerate(made):
        assert [same(one, other) for other in made] == [i == j for j in range(len(made))]
    assert not same(jf.FixedSteps(GRID, eta=0.5), jf.FixedSteps(GRID, eta=0.25))
    assert not same(jf.FixedSteps([0.0, 0.5, 1.0]), jf.FixedSteps([0.0, 0.25, 1.0]))


@pytest.mark.parametrize("name", jf.samplers.names())
def test_every_named_sampler_prints_and_goes_to_json_and_back(name):
    for options in ({}, OPTIONS.get(name, {"shift": 3.0}), OPTIONS.get(name, {"grid": jf.KarrasGrid(6, 0.01, 80.0)})):
        try:
            sampler = jf.samplers.by_name(name, None if name == "dpm_adaptive" else 6, **options)
        except ValueError as error:
            assert "must have options among" in str(error)
            continue
        assert same(eval(repr(sampler), NAMES), sampler)
        text = jf.to_json(sampler)
        assert same(jf.from_json(text), sampler) and jf.to_json(jf.from_json(text)) == text


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("text", SAMPLERS)
def test_every_sampler_goes_to_json_and_back(text):
    sampler = eval(text, NAMES)
    assert same(jf.from_json(jf.to_json(sampler)), sampler)
    assert jf.from_json(jf.to_json(sampler)).facts == sampler.facts


@pytest.mark.parametrize("name", [name for name in TABLE if name not in FUNCTIONS])
def test_everything_in_the_table_goes_to_json_and_back(name):
    for made in BUILT.get(name) or [TABLE[name]()]:
        text = jf.to_json(made)
        assert json.loads(text)["class"] == name
        assert same(jf.from_json(text), made)
        assert same(eval(as_code(made), NAMES), made)


def test_the_table_holds_exported_classes_alone():
    for name, kind in TABLE.items():
        module, _, attribute = name.partition(".")
        assert getattr(NAMES[module], attribute) is kind and not attribute.startswith("Abstract")
    rules = {
        name for name, kind in vars(jf).items() if isinstance(kind, type) and issubclass(kind, jf.AbstractGridRule)
    }
    clocks = {name for name, kind in vars(jf).items() if isinstance(kind, type) and issubclass(kind, jf.AbstractClock)}
    solvers = {
        name for name, kind in vars(jf).items() if isinstance(kind, type) and issubclass(kind, jf.AbstractFieldSolver)
    }
    for name in rules | clocks | solvers:
        assert name.startswith("Abstract") or f"jf.{name}" in TABLE, name


def test_numbers_keep_their_bits_and_types(x64):
    sampler = jf.FixedSteps(np.linspace(0, 1, 8) ** 1.3, eta=jnp.asarray(0.1, "float32"))
    back = jf.from_json(jf.to_json(sampler))
    assert back.times.dtype == "float64" and back.eta.dtype == "float32"
    np.testing.assert_array_equal(back.times, sampler.times)
    with jax.enable_x64(False):  # what was written in double is read in single
        assert jf.from_json(jf.to_json(sampler)).times.dtype == "float32"


class Own(dfx.Euler):
    """A solver of a user's."""


def test_what_is_not_in_the_table_raises_and_says_what():
    for made, fragment in [
        (jf.FixedSteps(GRID, diffusion=lambda t: t), r"Got FixedSteps\.diffusion, a function"),
        (FUNCTIONS["jf.CustomPath"], r"Got CustomPath\.alpha, a function: make it in code"),
        (jf.FixedSteps(GRID, Own()), r"Got FixedSteps\.solver, Own: make it"),
        (jf.FixedSteps(jf.ShiftedGrid(Squares(4), 2.0)), r"Got FixedSteps\.times\.rule, Squares"),
        (jf.AdaptiveSteps(controller=dfx.PIDController(1e-3, 1e-3, norm=jnp.max)), r"AdaptiveSteps\.controller\.norm"),
        (lambda t: t, "a function"),
        (object(), "Got object, object"),
    ]:
        refuses(lambda made=made: jf.to_json(made), fragment, TypeError)


class Squares(jf.AbstractGridRule):
    """A grid rule of a user's."""

    n: int = eqx.field(static=True)

    def times(self, path=None):
        return jnp.linspace(0.0, 1.0, self.n + 1) ** 2


def test_from_json_calls_nothing_but_the_classes_of_the_table(monkeypatch):
    called = []

    class Spy:
        def __init__(self, *args, **kwargs):
            called.append((args, kwargs))

    monkeypatch.setattr(jf, "Spy", Spy, raising=False)
    monkeypatch.setattr(dfx, "Spy", Spy, raising=False)
    for name in (
        "jf.Spy",
        "dfx.Spy",
        "Spy",
        "builtins.print",
        "os.system",
        "jf.Field",
        "jf.sample",
        "jf.to_json",
        "",
        None,
    ):
        for text in (
            json.dumps({"class": name}),
            json.dumps({"class": "jf.FixedSteps", "times": {"class": name, "n": 4}}),
            json.dumps({"list": [{"class": name}]}),
        ):
            with pytest.raises(ValueError, match="A class must be one of"):
                jf.from_json(text)
    with pytest.raises(ValueError, match="A class must be one of"):
        jf.from_json('{"n": 4}')
    assert not called


def test_bad_json_says_what_it_must_be():
    for text, fragment in [
        ("{", "A text must be JSON as to_json writes it"),
        ("", "A text must be JSON"),
        ('{"class": "jf.UniformGrid"}', r"The arguments must be those of jf\.UniformGrid"),
        ('{"class": "jf.UniformGrid", "n": 4, "m": 3}', r"those of jf\.UniformGrid\. Got \['m', 'n'\]"),
        ('{"class": "jf.UniformGrid", "n": 0}', "n must be an integer of at least 1"),
        ('{"array": [1, "a"], "dtype": "float32"}', "An array must be numbers"),
        ('{"array": [1], "dtype": "object"}', "An array must be numbers"),
        ('{"array": [1]}', "An array must be numbers"),
    ]:
        refuses(lambda text=text: jf.from_json(text), fragment)
