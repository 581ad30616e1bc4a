"""The variance-preserving path of a table of noise rates."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._validate import as_array, concrete, scalar_time
from ._abstract import AbstractRatePath
from .custom import BOUND

Table = list[float] | Float[ArrayLike, " T"]


class TablePath(AbstractRatePath):
    """The path of a network that was trained on a table of betas, as DDPM's and Stable Diffusion's.

    Entry k of the `T` entries, k = 0 the one next to the data, lies at `t = 1 - (k + 1)/T`, and there
    `alpha^2 = (1 - beta_0) ... (1 - beta_k)`, the table's `alphas_cumprod[k]`. At t = 1 `alpha` is 1. In between
    `log alpha` is a monotone cubic: alpha and sigma have continuous derivatives, and the log-SNR increases. So a
    network that counts the entries is `lambda t, x, args: net(T * (1 - t) - 1, x, args)`. `UniformGrid(n)` hits the
    table's times where `n` divides `T`; `jflow.samplers.table_times` gives those of other spacings.

    Raises `ValueError` for a table that is traced, has fewer than two betas or one that is not above 0 and below 1, or
    keeps so much of the data that the path does not start at noise.

    Source: Ho et al. 2020, arXiv:2006.11239, equations 2 and 4 (step k + 1 there is entry k here); the cubic of Fritsch
    & Butland 1984, SIAM Journal on Scientific and Statistical Computing 5, 300.

    ```python
    betas = np.linspace(1e-4, 0.02, 1000)  # DDPM's
    path = jf.TablePath(betas)
    assert jnp.allclose(path.alpha(1 - 500 / 1000) ** 2, np.prod(1 - betas[:500]), rtol=1e-5)
    latent = jf.TablePath(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # "scaled_linear" of Stable Diffusion
    assert jnp.allclose(latent.sigma(0.0) / latent.alpha(0.0), 14.61, atol=0.01)
    ```
    """

    betas: Array = frozen()
    _cubics: Array = frozen(repr=False)
    source: AbstractSource = frozen()

    def __init__(self, betas: Table, *, source: AbstractSource | None = None):
        """`betas`: the table, from the data to the noise; `source` of x0."""
        self.source, self.betas = Normal() if source is None else source, as_array(betas, "A table of betas", float)
        table = concrete(self.betas)
        rule = "A table of betas must be a vector of at least two known numbers"
        if table is None or table.ndim != 1 or len(table) < 2:
            raise ValueError(f"{rule}. Got {self.betas}: build the path outside jax.jit, from the whole table.")
        logs = np.log1p(-np.clip(table.astype(np.float64), -1, 1 - 1e-15))
        if not ((table > 0) & (table < 1)).all() or np.exp(logs.sum()) > BOUND**2:
            raise ValueError(
                f"{rule} above 0 and below 1, so that alphas_cumprod decreases, and it must reach noise, {BOUND**2:g}. "
                f"Got betas from {table.min():.4g} to {table.max():.4g}, and {np.exp(logs.sum()):.4g} at the "
                "end: turn a table that runs from noise to data around, and leave out an end of alphas_cumprod = 0."
            )
        steps = -logs / 2  # of -log alpha, from entry to entry
        inner = 2 / (1 / steps[1:] + 1 / steps[:-1])
        left, right = np.r_[steps[0], inner], np.r_[inner, steps[-1]]
        cubics = np.cumsum(steps) - steps, left, 3 * steps - 2 * left - right, left + right - 2 * steps
        self._cubics = jnp.asarray(np.stack(cubics), float)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Table, *, source: AbstractSource | None = None) -> "TablePath":
        """The path of a table of `alphas_cumprod`, from the data to the noise: `beta_k = 1 - abar_k / abar_(k-1)`;
        `source` of x0.

        ```python
        bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        assert jnp.allclose(jf.TablePath.from_alphas_cumprod(bars).alpha(0.5) ** 2, bars[499], rtol=1e-5)
        ```
        """
        bars = np.concatenate([[1.0], np.asarray(alphas_cumprod, np.float64)])
        return cls(1 - bars[1:] / bars[:-1], source=source)

    def _rate(self, t):
        t, (n,) = scalar_time(t), self.betas.shape
        entry = n * (1 - t)
        k = jnp.clip(jnp.floor(entry).astype(int), 0, n - 1)
        c0, c1, c2, c3 = self._cubics[:, k].astype(t.dtype)
        s = entry - k.astype(t.dtype)
        return c0 + s * (c1 + s * (c2 + s * c3)), n * (c1 + s * (2 * c2 + s * 3 * c3))
