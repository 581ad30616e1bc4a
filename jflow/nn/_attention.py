"""Multi-head self-attention."""

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._kinds import check_kinds
from ._events import positive


class SelfAttention(nnx.Module):
    """`softmax(Q K' / sqrt(d_head)) V` for every head, then a linear map; each of `dim` numbers a token.

    Without positions in the tokens it commutes with every permutation of them.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        zero: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """`dim` numbers a token, `heads` dividing it; `zero` starts the output at zero.

        Raises `ValueError` where the heads do not divide the numbers.
        """
        check_kinds(SelfAttention.__init__, locals())
        if positive("dim", dim) % positive("heads", heads):
            raise ValueError(f"The heads of an attention must divide its channels. Got {heads} heads, {dim} channels.")
        self.heads = heads
        self.qkv = nnx.Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
        self.out = nnx.Linear(dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        q, k, v = self.qkv(x).reshape(x.shape[0], 3, self.heads, -1).transpose(1, 0, 2, 3)
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
