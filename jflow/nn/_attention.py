"""Multi-head self-attention."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._kinds import check_kinds
from ._draw import drawn_at_once, linear
from ._events import positive
from ._kernel import attend


class SelfAttention(nnx.Module):
    """`softmax(Q K' / sqrt(d_head)) V` for every head, then a linear map; each of `dim` numbers a token.

    Without positions in the tokens it commutes with every permutation of them. In half precision a CUDA device computes
    it by cuDNN's kernel, forward and backward, where that has the size of a head; forward mode is by XLA everywhere.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.

    ```python
    attention, x = jf.nn.SelfAttention(4, heads=2, rngs=nnx.Rngs(0)), jr.normal(jr.key(0), (3, 4))
    assert jnp.allclose(attention(x[::-1]), attention(x)[::-1], atol=1e-5)
    ```
    """

    @drawn_at_once
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        zero: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the layer.

        Args:
            dim: The numbers of a token.
            heads: The heads, which divide `dim`.
            zero: Whether the output starts at zero.
            dtype: The type of compute; parameters are float32.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` where the heads do not divide the numbers.
        """
        check_kinds(SelfAttention.__init__, locals())
        if positive("dim", dim) % positive("heads", heads):
            raise ValueError(f"The heads of an attention must divide its channels. Got {heads} heads, {dim} channels.")
        self.heads = heads
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, variance=0.0 if zero else 1.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.out(attend(self.qkv(x).reshape(x.shape[0], 3, self.heads, -1)).reshape(x.shape))
