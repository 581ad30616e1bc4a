"""A path on the sphere: its points stay there, the marginal velocity is exact, a density raises."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Uniform(jf.AbstractSource):
    coupled = False

    def sample(self, key, like, args=None):
        noise = jr.normal(key, like.shape, like.dtype)
        return noise / jnp.linalg.norm(noise)


class Sphere(jf.AbstractDifferentiablePath):
    source: jf.AbstractSource = Uniform()
    flat = False

    def interpolate(self, t, x0, x1, z=None):
        angle = jnp.arctan2(jnp.linalg.norm(x1 - jnp.dot(x0, x1) * x0), jnp.dot(x0, x1))

        def weight(s):  # sin(s angle) / sin(angle)
            return s * jnp.sinc(s * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)

        return weight(1 - t) * x0 + weight(t) * x1

    def recommended(self, field, nfe, args=None):
        return jf.FixedSteps(jf.UniformGrid(nfe), GeodesicEuler())


class Tangent(jf.AbstractField):
    field: jf.AbstractField
    predicts = "velocity"

    @property
    def path(self):
        return self.field.path

    def predict(self, targets, t, x, args=None):
        velocity = self.field.velocity(t, x, args)
        tangent = velocity - jnp.dot(velocity, x) * x
        return jf.given(self.path, t, x, (tangent,), ("velocity",), targets, args)


class GeodesicEuler(jf.AbstractStepRule):
    def step(self, field, row, x, state, noise, args):
        move = (row.t1 - row.t0) * field.velocity(row.t0, x, args)
        length = jnp.linalg.norm(move)
        x = jnp.cos(length) * x + jnp.sinc(length / jnp.pi) * move
        return x / jnp.linalg.norm(x), state


# The law -------------------------------------------------------------------------------------------------------------

PATH = Sphere()
POINTS = jnp.array([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0]])
SHARES = jnp.array([0.3, 0.7])


def exact(t, x, args):
    """The marginal velocity of two points, in closed form, and something that is not tangent.

    Given the point at an angle `a` from `x`, the state has the density `sin(a/(1-t)) / ((1-t) sin(a))` with respect to
    the uniform law, for `a < (1-t) pi`, and moves towards that point at the speed `a/(1-t)`.
    """

    def one(point):
        along = point - jnp.dot(x, point) * x
        length = jnp.maximum(jnp.linalg.norm(along), 1e-7)
        angle = jnp.arctan2(length, jnp.dot(x, point))
        density = jnp.where(angle < (1 - t) * jnp.pi, jnp.sin(angle / (1 - t)) / ((1 - t) * jnp.sin(angle)), 0)
        # a state that no geodesic reaches, where a long step may lead, moves to the nearest point
        return jnp.maximum(density, jnp.exp(-20 - 20 * angle)), angle / (1 - t) * along / length

    densities, velocities = jax.vmap(one)(POINTS)
    weights = SHARES * densities
    return weights @ velocities / jnp.sum(weights) + 5 * x


FIELD = Tangent(jf.Field(exact, PATH, "velocity"))


def test_points_stay_on_the_sphere():
    key_source, key_data = jr.split(jr.key(0))
    x0, x1 = (jax.vmap(lambda k: PATH.source.sample(k, jnp.zeros(3)))(jr.split(k, 100)) for k in (key_source, key_data))
    t = jnp.linspace(0, 1, 100)
    x, v = jax.jit(jax.vmap(lambda *ends: (PATH.interpolate(*ends), PATH.velocity(*ends))))(t, x0, x1)
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(x * v, axis=1), 0, atol=2e-6)
    np.testing.assert_allclose(x[0], x0[0], atol=1e-6)
    np.testing.assert_allclose(x[-1], x1[-1], atol=1e-6)


def test_the_marginal_velocity_is_the_weighted_average_of_conditional_ones(x64):
    """The weights by the Jacobian of the map from `x_t` to `x0`, the velocities by the path's own derivative."""

    def back(t, x, point):  # the source point whose geodesic to `point` passes through `x` at `t`
        along = x - jnp.dot(x, point) * point
        angle = jnp.arctan2(jnp.linalg.norm(along), jnp.dot(x, point))
        far = angle / (1 - t)
        return jnp.cos(far) * point + jnp.sin(far) * along / jnp.linalg.norm(along), far

    def basis(x):
        return jnp.linalg.svd(x[None])[2][1:]  # of the tangent space

    def average(x):
        def one(point):
            x0, far = back(t, x, point)
            jacobian = basis(x0) @ jax.jacobian(lambda y: back(t, y, point)[0])(x) @ basis(x).T
            return jnp.where(far < jnp.pi, jnp.abs(jnp.linalg.det(jacobian)), 0), PATH.velocity(t, x0, point)

        densities, velocities = jax.vmap(one)(POINTS.astype(float))
        return (SHARES * densities) @ velocities / jnp.sum(SHARES * densities)

    t = 0.4
    x = jax.vmap(lambda k: PATH.source.sample(k, jnp.zeros(3)))(jr.split(jr.key(2), 50))
    means, velocities = jax.jit(jax.vmap(lambda x: (average(x), FIELD.velocity(t, x))))(x)
    reached = jnp.isfinite(means).all(1)
    assert reached.sum() > 40
    np.testing.assert_allclose(velocities[reached], means[reached], atol=1e-6)


def test_training_regresses_the_same_velocity():
    """At the exact field the gradient of the loss vanishes in the mean, in directions that depend on time and state."""

    def loss(a, key):
        key_data, key_loss = jr.split(key)
        x1 = POINTS[jr.choice(key_data, 2, p=SHARES)]

        def moved(t, x, args):
            return exact(t, x, args) + a @ jnp.stack([jnp.sin(3 * x), t * x[::-1]])

        return jf.matching_loss(Tangent(jf.Field(moved, PATH, "velocity")), key_loss, x1, law=jf.laws.Uniform(0.0, 0.9))

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros(2), jr.split(jr.key(3), 4000))
    error = np.std(np.asarray(grads), axis=0) / np.sqrt(len(grads))
    assert (np.abs(grads.mean(0)) < 4 * error).all() and (error < 0.05).all()


def test_generation_ends_at_the_points_with_their_shares():
    n = 2000
    sol = jf.generate(FIELD, jr.key(4), n, (3,), batch_size=n)  # the path's own sampler
    x = sol.x
    assert (sol.status == 0).all() and (sol.nfe == 32).all()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    ends = np.argmax(x @ np.asarray(POINTS).T, axis=1)
    np.testing.assert_allclose(x, np.asarray(POINTS)[ends], atol=1e-3)
    assert abs(np.mean(ends) - 0.7) < 4 * np.sqrt(0.21 / n)


def test_a_density_raises():
    for call in (lambda: jf.log_prob(FIELD, POINTS[0]), lambda: jf.sample(FIELD, jr.key(0), (3,), log_prob=True)):
        with pytest.raises(ValueError, match="is curved"):
            call()
