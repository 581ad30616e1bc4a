"""Guides at their limits: advice that must hold, and null conditions of another type."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf


@pytest.mark.parametrize(
    "parts", [{}, {"eta": 1.0}, {"eta": 1.0, "clock": jf.RatioClock()}], ids=["ode", "eta", "clock"]
)
def test_advice_of_classifier_guidance(parts):
    """A clock that an error advises does not raise in its turn."""
    world = jf.distributions.GaussianMixture(jnp.asarray([[-2.0, 0.0], [2.0, 1.0]]), stds=jnp.asarray([0.5, 0.8]))
    guided = jf.ClassifierGuided(world.field(jf.CondOT()), lambda t, x, y: -jnp.sum((x - y) ** 2))

    def draw(parts):
        args = jf.Args(jnp.zeros(2), scale=1.0)
        return jf.sample(guided, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(10), **parts), args=args)

    try:
        draw(parts)
    except ValueError as error:
        advice = str(error)
    else:
        return
    for name in ("RatioClock", "AngleClock", "ThetaClock"):
        if f"{name}()" in advice:
            assert draw(parts | {"clock": getattr(jf, name)()}).status == 0


NULLS = {
    "256 classes in uint8": (jnp.uint8(3), 256, 256.0),
    "counts, null 0.5": (jnp.array([1, 2]), jnp.array([0.5, 0.5]), 1.0),
    "attributes, null 0.5": (jnp.array([True, False]), jnp.array([0.5, 0.5]), 1.0),
}


def guided_null(condition, null):
    """The sum of the condition that a network is given at scale 0."""
    field = jf.Field(
        lambda t, x, args: jnp.full_like(x, jnp.sum(jnp.asarray(args, jnp.float32))), jf.CondOT(), predicts="velocity"
    )
    return jf.Guided(field, null=null).velocity(0.5, jnp.zeros(1), jf.Args(condition, scale=0.0))[0]


def dropped_null(condition, null):
    """The sum of the condition at a rate of 1."""
    return jnp.sum(jnp.asarray(jf.drop_condition(jr.key(0), condition, null, 1.0), jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("given", [guided_null, dropped_null], ids=["Guided", "drop_condition"])
def test_null_label_of_another_type(given):
    """A null condition keeps its value beside a condition of any integer or floating type, or raises."""
    for kind in (jnp.bool_, jnp.uint8, jnp.int8, jnp.int32, jnp.uint32, jnp.float32):
        for null in (10, 300, -1):
            if (kind, null) == (jnp.uint32, -1):
                continue
            assert float(given(jnp.asarray(1, kind), null)) == null
    for condition, null in ((jnp.uint32(1), -1), (jnp.int32(1), 10.5), (1, 2**40), (np.int64(2**40), 3)):
        with pytest.raises(ValueError, match="must"):
            given(condition, null)


@pytest.mark.parametrize("given", [guided_null, dropped_null], ids=["Guided", "drop_condition"])
@pytest.mark.parametrize("condition, null, want", NULLS.values(), ids=NULLS)
def test_null_condition_is_not_narrowed(condition, null, want, given):
    """A null condition that the type of the condition cannot hold is kept as it is, or raises."""
    try:
        got = given(condition, null)
    except (ValueError, TypeError) as error:
        assert "must" in str(error)
    else:
        assert abs(float(got) - want) < 1e-6
