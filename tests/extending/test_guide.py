"""A guide that needs the Jacobian of the data prediction: the exact posterior of a Gaussian seen through a matrix."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Measured(jf.AbstractGuide):
    """Posterior samples of `y = A x1 + noise`, with `y` in `Args(condition, measurement=y)`.

    `data + V A^T (A V A^T + std^2 I)^-1 (y - A data)`, `V = (sigma^2/alpha) d data/dx` the covariance of x1 given x_t.

    Source: Rozet et al. 2024, arXiv:2405.13712 (moment matching posterior sampling).
    """

    field: jf.AbstractField
    operator: jax.Array = jf.frozen(converter=jnp.asarray)
    std: jax.Array = jf.frozen(converter=jnp.asarray)

    takes = ("measurement",)

    @property
    def sources(self):
        return ("data", *self.field.sources)

    def undefined(self, t):
        return "the guide divides by alpha = 0" if t == 0 and self.path.starts_at_noise else self.field.undefined(t)

    def predict(self, targets, t, x, args=None):
        y, rest = jf.Args.of(args).take("measurement")
        if y is None:
            return self.field.predict(targets, t, x, rest)
        data, pull = jax.vjp(lambda x: self.field.data(t, x, rest), x)
        spread = self.path.sigma(t) ** 2 / self.path.alpha(t)
        rows = spread * jax.vmap(lambda row: pull(row)[0])(self.operator)  # A V
        total = rows @ self.operator.T + self.std**2 * jnp.eye(len(y))
        data = data + rows.T @ jnp.linalg.solve(total, y - self.operator @ data)
        return jf.given(self.path, t, x, (data,), ("data",), targets, rest)


# The law -------------------------------------------------------------------------------------------------------------

MEAN, COV = np.array([1.0, -1.0, 0.5]), np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.3], [0.2, -0.3, 0.5]])
A, STD, Y = np.array([[1.0, 0.0, 1.0], [0.5, -1.0, 0.0]]), 0.3, np.array([2.0, 1.0])
GAIN = COV @ A.T @ np.linalg.inv(A @ COV @ A.T + STD**2 * np.eye(2))
POST_MEAN, POST_COV = MEAN + GAIN @ (Y - A @ MEAN), COV - GAIN @ A @ COV
SEEN = jf.Args(measurement=Y)


def prior(path):
    return jf.distributions.Gaussian(MEAN, cov=COV).field(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [jf.CondOT(), jf.VP()], ids=["CondOT", "VP"])
def test_the_posterior_mean_is_exact_at_every_time(x64, path):
    exact = jf.distributions.Gaussian(POST_MEAN, cov=POST_COV).field(path)
    guided = Measured(prior(path), A, STD)
    t, x = jnp.array([0.05, 0.5, 0.95]), jr.normal(jr.key(0), (3, 3))
    names = ("data", "velocity", "score")
    both = [
        jax.jit(jax.vmap(lambda t, x, f=f, a=a: f.predict(names, t, x, a)))(t, x)
        for f, a in [(guided, SEEN), (exact, None)]
    ]
    for found, wanted in zip(*both, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_samples_have_the_posterior_law(x64):
    """The flow of a Gaussian is affine: its value and its Jacobian are the law of what is sampled."""
    guided = Measured(prior(jf.CondOT()), A, STD)
    sampler = jf.FixedSteps(jf.LogSNRGrid(64, lo=-12.0, hi=12.0), jf.DPMpp(3))

    @jax.jit
    def law(x):
        return jf.decode(guided, x, sampler, args=SEEN).x, jax.jacobian(
            lambda x: jf.decode(guided, x, sampler, args=SEEN).x
        )(x)

    mean, slope = law(jnp.zeros(3))
    np.testing.assert_allclose(mean, POST_MEAN, atol=5e-3)
    np.testing.assert_allclose(slope @ slope.T, POST_COV, atol=5e-3)


@pytest.mark.slow
def test_entries_and_counts():
    guided = Measured(prior(jf.CondOT()), A, STD)
    x = jnp.ones(3)
    np.testing.assert_array_equal(guided.data(0.5, x), guided.field.data(0.5, x))  # nothing was measured
    sampler = jf.FixedSteps(jf.UniformGrid(4, t0=0.01))
    many = jf.Args(measurement=np.stack([Y, Y, -Y]))  # a measurement a sample
    sol = jf.generate(guided, jr.key(0), 3, (3,), sampler, args=many, args_in_axes=0)
    assert np.abs(sol.x[0] - sol.x[2]).max() > 0.1 and (sol.nfe == 4).all()  # vjps are no evaluations
    assert not any(jax.tree.leaves(jf.trainable(guided)))
    both = jf.Guided(Measured(jf.Field(lambda t, x, c: x * c, jf.CondOT(), "velocity"), A, STD), null=0.0)
    assert both.velocity(0.5, x, jf.Args(1.0, scale=2.0, measurement=Y)).shape == (3,)  # inside another guide
    with pytest.raises(ValueError, match="divides by alpha"):
        jf.sample(guided, jr.key(0), (3,), jf.UniformGrid(4), args=SEEN)
    with pytest.raises(ValueError, match="measurement"):
        both.field.field.velocity(0.5, x, SEEN)  # nobody reads the entry
