"""The default sampler: what the verbs take, what it costs, who overrides it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, PATHS, Counter, mixture, refuses

import jflow as jf

KEY, X = jr.key(0), jnp.array([0.4, -1.1])


class Net(eqx.Module):
    """A network with a condition."""

    def __call__(self, t, x, args):
        return jnp.tanh(x) * (1.0 if args is None else args) - x


def field(path=None, predicts="velocity"):
    return jf.Field(Net(), path or jf.CondOT(), predicts)


GUIDED = jf.Guided(field(), null=0.0)
SCALE = jf.Args(1.0, scale=2.0)
COSTS = {  # a field, its condition, what a step of it costs
    "velocity": (field(), None, 1),
    "data": (field(predicts="data"), None, 1),
    "v on VP": (field(jf.VP(), "v"), None, 1),
    "noise on VP": (field(jf.VP(), "noise"), None, 1),
    "preconditioned": (jf.Preconditioned(Net(), jf.VE(), 0.5), None, 1),
    "another path": (jf.change_path(field(jf.VP()), jf.VP()), None, 1),
    "guided": (GUIDED, SCALE, 2),
    "guided, without a scale": (GUIDED, 1.0, 1),
    "guided by another field": (jf.Guided(field(), weak=field()), jf.Args(1.0, scale=2.0), 2),
    "guided twice": (
        jf.Guided(GUIDED, null=0.0, scale="outer", negative="other"),
        jf.Args(1.0, scale=2.0, outer=1.5),
        4,
    ),
    "thresholded": (jf.Thresholded(GUIDED, limit=3.0), SCALE, 2),
    "exact": (jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT()), None, 1),
    "an exact one, guided": (
        jf.Guided(jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT()), null=0.0),
        SCALE,
        2,
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_it_takes_the_evaluations_that_are_asked_for(name):
    """`nfe // cost` steps, with an end that is given: that of a traced path is known too."""
    made, args, cost = COSTS[name]
    for nfe in (1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 25, 32, 50, 100):
        if nfe < cost:
            refuses(
                lambda nfe=nfe: jf.recommended(made, nfe, args), f"nfe must be enough for one step, which costs {cost}"
            )
            continue
        sampler = jf.recommended(made, nfe, args)
        assert isinstance(sampler, jf.FixedSteps) and sampler.end in ("denoise", "stop")
        assert sampler.n == nfe // cost, nfe
    assert jf.recommended(made, args=args).n == 32 // cost


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["velocity", "data", "noise on VP", "guided", "guided twice", "exact", "preconditioned"]
)
def test_what_it_counts_is_what_the_network_is_called(name):
    made, args, cost = COSTS[name]
    for nfe in (5, 9):
        sampler = jf.recommended(made, nfe, args)
        out = jax.jit(lambda x, sampler=sampler: jf.decode(made, x, sampler, args=args))(X)
        assert out.nfe == nfe // cost * cost and out.status == 0 and out.t == 1
    if name == "velocity":
        net = Counter(Net())
        jf.decode(jf.Field(net, jf.CondOT(), "velocity"), X, jf.recommended(made, 9)).x.block_until_ready()
        assert net.take() == 9


def test_an_interval_of_guidance_counts_as_guidance():
    made = jf.Guided(field(), null=0.0, interval=(0.2, 0.8))
    assert jf.recommended(made, 20, SCALE).n == 10
    refuses(lambda: jf.recommended(made, 1, SCALE), "nfe must be enough for one step")


@pytest.mark.slow
def test_it_is_the_default_of_sample_decode_and_generate():
    made = field()
    sampler = jf.recommended(made)
    runs = {
        "sample": lambda *s: jf.sample(made, KEY, (2,), *s),
        "decode": lambda *s: jf.decode(made, X, *s),
        "generate": lambda *s: jf.generate(made, KEY, 3, (2,), *s),
    }
    for name, run in runs.items():
        np.testing.assert_array_equal(run().x, run(sampler).x, err_msg=name)
        assert (run().nfe == 32).all()
    guided = jf.sample(GUIDED, KEY, (2,), args=SCALE)
    np.testing.assert_array_equal(
        guided.x, jf.sample(GUIDED, KEY, (2,), jf.recommended(GUIDED, 32, SCALE), args=SCALE).x
    )
    assert guided.nfe == 32
    many = jf.generate(GUIDED, KEY, 3, (2,), args=jf.Args(np.ones(3), scale=2.0), args_in_axes=jf.Args(0, scale=None))
    np.testing.assert_array_equal(many.nfe, 32)


@pytest.mark.slow
def test_encode_and_log_prob_are_adaptive_at_1e_5_and_solve_has_none():
    made, tight = field(), jf.AdaptiveSteps(rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jf.encode(made, X).x, jf.encode(made, X, tight).x)
    np.testing.assert_array_equal(jf.log_prob(made, X).log_prob, jf.log_prob(made, X, tight).log_prob)
    refuses(lambda: jf.solve(lambda t, x, args: -x, X), "sampler", TypeError)


@pytest.mark.slow
def test_it_is_nearer_than_euler_at_as_many_evaluations(x64):
    """On the mixture, in root mean square over starts, from 5 evaluations on."""
    starts = jnp.linspace(-2.5, 2.5, 21)[:, None]

    @jax.jit
    def ends():
        def run(name, sampler):
            made = mixture(PATHS[name], *MIX1)
            scale = PATHS[name].sigma(0.0)
            return jax.vmap(lambda x: jf.decode(made, scale * x, sampler).x)(starts)

        def every(name):
            made = mixture(PATHS[name], *MIX1)
            fine = run(name, jf.FixedSteps(jf.EasedGrid(400), jf.Adams(4), clock=jf.RatioClock(), end="stop"))
            pairs = {n: (run(name, jf.recommended(made, n)), run(name, jf.samplers.ddim(n))) for n in (5, 10, 20)}
            return fine, pairs

        return {name: every(name) for name in ("CondOT", "Cosine", "VP")}

    for name, (fine, pairs) in ends().items():
        for n, (own, euler) in pairs.items():
            ours, theirs = (float(jnp.sqrt(((x - fine) ** 2).mean())) for x in (own, euler))
            assert ours < 0.7 * theirs, (name, n, ours, theirs)


# ------------------------------------------------------------------------------------------------------- overrides


def test_a_flow_map_jumps_at_most_four_times():
    jumps = jf.FlowMap(lambda s, t, x, args: -x, jf.CondOT())
    for nfe, n in ((1, 1), (3, 3), (4, 4), (32, 4)):
        assert jf.recommended(jumps, nfe) == jf.FixedSteps(jf.UniformGrid(n), jf.Jump(), end="stop")
    assert jf.sample(jumps, KEY, (2,)).nfe == 4


def test_a_guide_over_a_flow_map_has_no_jump():
    """It is a field, and its default that of its path at its cost."""
    jumps = jf.FlowMap(lambda s, t, x, args: -x, jf.CondOT())
    guided = jf.Guided(jumps, null=0.0)
    assert not isinstance(jf.recommended(guided, 32, SCALE).solver, jf.Jump)
    assert jf.sample(guided, KEY, (2,), args=SCALE).nfe == 32


class Own(jf.AbstractField):
    """A field with a default of its own."""

    path: jf.AbstractPath
    steps: int | None = eqx.field(static=True)
    predicts = "velocity"

    def predict(self, targets, t, x, args=None):
        return jf.given(self.path, t, x, (-x,), ("velocity",), targets, args)

    def recommended(self, nfe, args=None) -> Any:
        return None if self.steps is None else jf.FixedSteps(jf.UniformGrid(self.steps), end="stop")


class Half(jf.AbstractAffinePath):
    """A path with a default of its own."""

    source = jf.Normal()

    def alpha(self, t):
        return jnp.asarray(t)

    def sigma(self, t):
        return 1 - jnp.asarray(t)

    def recommended(self, field, nfe, args=None) -> Any:
        return jf.FixedSteps(jf.CosineGrid(max(1, nfe // 2)), end="stop")


class Arc(jf.AbstractDifferentiablePath):
    """A path that is not affine."""

    source = jf.Normal()

    def interpolate(self, t, x0, x1, z=None):
        return x0 + t**2 * (x1 - x0) + jnp.sin(jnp.pi * t) * x0 * x1


def test_a_field_overrides_its_path_which_overrides_the_rest():
    assert jf.recommended(Own(Half(), 3), 32) == jf.FixedSteps(jf.UniformGrid(3), end="stop")
    assert jf.recommended(Own(Half(), None), 32) == jf.FixedSteps(jf.CosineGrid(16), end="stop")
    assert jf.recommended(Own(jf.CondOT(), None), 32) == jf.recommended(field(), 32)
    assert jf.sample(Own(Half(), 3), KEY, (2,)).nfe == 3


def test_a_path_that_is_not_affine_is_solved_adaptively():
    made = Own(Arc(), None)
    assert jf.recommended(made) == jf.AdaptiveSteps()
    assert jf.sample(made, KEY, (2,)).status == 0


def test_bad_input_raises_with_a_reason():
    made = field()
    for call, kind, fragment in [
        (lambda: jf.recommended(made, 0), ValueError, "nfe must be an integer"),
        (lambda: jf.recommended(made, 2.5), ValueError, "nfe must be an integer"),
        (lambda: jf.recommended(made, True), ValueError, "nfe must be an integer"),
        (lambda: jf.recommended(Net(), 8), TypeError, "field must be AbstractField"),
        (lambda: jf.recommended(GUIDED, 1, SCALE), ValueError, r"costs 2 evaluations here\. Got nfe = 1"),
        # a network of noise says nothing of the data at alpha = 0, and the default starts there
        (lambda: jf.sample(field(predicts="noise"), KEY, (2,)), ValueError, "Got t = 0, .*start a little later"),
    ]:
        refuses(call, fragment, kind)
