"""Ready-made ODEs and SDEs `dx = drift dt + diffusion dW`, with their exact laws; each component for itself.

`drift(t, x, args)` and `diffusion(t, x, args)` go to `jflow.solve` as they are:

```python
ou = jf.processes.OrnsteinUhlenbeck(theta=1.0, sigma=0.5)
sol = jf.solve(ou.drift, jnp.ones(2), jf.UniformGrid(100), diffusion=ou.diffusion, key=jr.key(0))
assert sol.x.shape == (2,)
```
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from ._event import as_state
from ._kinds import check_kinds
from ._types import Noun, Time
from ._validate import parameter
from .distributions import Gaussian


class LinearField(Noun):
    """The ODE `dx/dt = -theta x`, whose flow is `psi_t(x0) = exp(-theta t) x0`.

    ```python
    field = jf.processes.LinearField(0.5)
    sol = jf.solve(field.drift, jnp.ones(2), jf.UniformGrid(1000))
    assert jnp.allclose(sol.x, field.flow(jnp.ones(2), 1.0), atol=1e-3)
    ```
    """

    theta: Array

    def __init__(self, theta: ArrayLike):
        """`theta` the rate, a number; it may be negative."""
        self.theta = parameter(theta, "theta", positive=False)

    def drift(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """`-theta x`."""
        return -_like(self.theta, x) * x

    def flow(self, x0: Shaped[ArrayLike, "..."], t: Time) -> Float[Array, "..."]:
        """`exp(-theta t) x0`, to which `x0` is carried in the time `t`, which may be negative."""
        x0 = _start(x0)
        return jnp.exp(-_like(self.theta, x0) * _like(t, x0)) * x0


class BrownianMotion(Noun):
    """Scaled Brownian motion, `dx = sigma dW`.

    ```python
    mean, variance = jf.processes.BrownianMotion(2.0).transition(jnp.ones(3), 0.5)
    assert (mean == 1).all() and variance == 2
    ```
    """

    sigma: Array

    def __init__(self, sigma: ArrayLike = 1.0):
        """`sigma` the diffusion coefficient, a positive number."""
        self.sigma = parameter(sigma, "sigma")

    def drift(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """Zero."""
        return jnp.zeros_like(x)

    def diffusion(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, ""]:
        """`sigma`."""
        return _like(self.sigma, x)

    def transition(self, x0: Shaped[ArrayLike, "..."], t: Time) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        """Mean `x0` and variance `sigma^2 t` of the Gaussian law a time `t` after `x0`."""
        x0 = _start(x0)
        return x0, _like(self.sigma, x0) ** 2 * _like(t, x0)


class OrnsteinUhlenbeck(Noun):
    """The Ornstein-Uhlenbeck process, `dx = -theta x dt + sigma dW`.

    Source: Uhlenbeck & Ornstein 1930, Physical Review 36, 823; Särkkä & Solin 2019, Applied Stochastic Differential
    Equations, example 6.2.

    ```python
    ou = jf.processes.OrnsteinUhlenbeck(theta=2.0, sigma=1.0)
    assert jnp.allclose(ou.transition(jnp.ones(2), 100.0)[1], ou.stationary((2,)).variance)
    ```
    """

    theta: Array
    sigma: Array

    def __init__(self, theta: ArrayLike = 1.0, sigma: ArrayLike = 1.0):
        """`theta` the rate of return, `sigma` the diffusion coefficient: positive numbers."""
        self.theta, self.sigma = parameter(theta, "theta"), parameter(sigma, "sigma")

    def drift(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """`-theta x`."""
        return -_like(self.theta, x) * x

    def diffusion(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, ""]:
        """`sigma`."""
        return _like(self.sigma, x)

    def transition(self, x0: Shaped[ArrayLike, "..."], t: Time) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        """Mean `exp(-theta t) x0` and variance `sigma^2 (1 - exp(-2 theta t)) / (2 theta)` of the Gaussian law a time
        `t` after `x0`.
        """
        x0 = _start(x0)
        theta, sigma, t = (_like(number, x0) for number in (self.theta, self.sigma, t))
        return jnp.exp(-theta * t) * x0, -jnp.expm1(-2 * theta * t) * sigma**2 / (2 * theta)

    def stationary(self, shape: tuple[int, ...] = ()) -> Gaussian:
        """The law that does not change, `N(0, sigma^2 / (2 theta))` for each component of an event of this shape."""
        return Gaussian(jnp.zeros(shape), std=self.sigma / jnp.sqrt(2 * self.theta))


class Langevin(Noun):
    """Langevin dynamics, `dx = (sigma^2 / 2) grad log p(x) dt + sigma dW`: `p` is stationary.

    For `p = N(0, sigma^2 / (2 theta))` it is the Ornstein-Uhlenbeck process.

    Source: Roberts & Tweedie 1996, Bernoulli 2, 341, equation 1 (with `sigma = 1`).

    ```python
    law = jf.distributions.moons()
    langevin, x0 = jf.processes.Langevin(law.log_prob, sigma=0.1), jnp.array([5.0, 0.0])
    sol = jf.solve(langevin.drift, x0, jf.UniformGrid(100), diffusion=langevin.diffusion, key=jr.key(0))
    assert law.log_prob(sol.x) > -10
    ```
    """

    log_density: Callable[[Array], Array]
    sigma: Array

    def __init__(self, log_density: Callable[[Array], Array], sigma: ArrayLike = 1.0):
        """Makes the dynamics of a density.

        Args:
            log_density: A differentiable function of one event, up to a constant, as `GaussianMixture(...).log_prob`.
            sigma: The diffusion coefficient, a positive number: with `sigma^2` the process runs faster.
        """
        check_kinds(Langevin.__init__, locals())
        self.log_density, self.sigma = log_density, parameter(sigma, "sigma")

    def drift(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """`(sigma^2 / 2) grad log p(x)`."""
        return _like(self.sigma, x) ** 2 / 2 * jax.grad(self.log_density)(x)

    def diffusion(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, ""]:
        """`sigma`."""
        return _like(self.sigma, x)


class GeometricBrownianMotion(Noun):
    """Geometric Brownian motion, `dx = mu x dt + sigma x dW` in the sense of Itô.

    Source: Black & Scholes 1973, Journal of Political Economy 81, 637; Kloeden & Platen 1992, section 4.4.

    ```python
    process = jf.processes.GeometricBrownianMotion(mu=0.1, sigma=0.3)
    mean, variance = process.transition(jnp.ones(2), 1.0)
    assert jnp.allclose(mean, jnp.exp(0.1)) and process.solution(jnp.ones(2), 1.0, jnp.zeros(2)).shape == (2,)
    ```
    """

    mu: Array
    sigma: Array

    def __init__(self, mu: ArrayLike = 0.0, sigma: ArrayLike = 1.0):
        """`mu` the rate of growth of the mean, a number; `sigma` the relative diffusion, a positive number."""
        self.mu, self.sigma = parameter(mu, "mu", positive=False), parameter(sigma, "sigma")

    def drift(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """`mu x`."""
        return _like(self.mu, x) * x

    def diffusion(self, t: Time, x: Shaped[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        """`sigma x`, of the shape of `x`: each component has its own Brownian motion."""
        return _like(self.sigma, x) * x

    def solution(self, x0: Shaped[ArrayLike, "..."], t: Time, w: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`x0 exp((mu - sigma^2 / 2) t + sigma w)`, with `w` the Brownian motion at `t`, of the shape of `x0`."""
        x0 = _start(x0)
        mu, sigma, t, w = (_like(number, x0) for number in (self.mu, self.sigma, t, w))
        return x0 * jnp.exp((mu - sigma**2 / 2) * t + sigma * w)

    def transition(self, x0: Shaped[ArrayLike, "..."], t: Time) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Mean `x0 exp(mu t)` and variance `x0^2 exp(2 mu t) (exp(sigma^2 t) - 1)` of the log-normal law a time `t`
        after `x0`.
        """
        x0 = _start(x0)
        mu, sigma, t = (_like(number, x0) for number in (self.mu, self.sigma, t))
        mean = x0 * jnp.exp(mu * t)
        return mean, mean**2 * jnp.expm1(sigma**2 * t)


def _start(x0: Any) -> Array:
    return as_state(x0, "A start")


def _like(number, x):
    """A parameter in the type of the state."""
    return jnp.asarray(number).astype(x.dtype)
