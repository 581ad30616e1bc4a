"""Networks in flax NNX, one example at a time: `net(t, x, args)`.

`t` is a scalar time, `x` one event, `args` its condition: `None`, a class label or a vector, as the constructor
says; a batch goes through `jax.vmap`. With `times=2` the call is a flow map's, `net(s, t, x, args)`. A network is a
pytree whose inexact-array leaves are its trainable parameters, all float32; `dtype=` is the type it computes and
answers in. No network keeps running statistics.
"""

from ._attention import SelfAttention
from ._bounded import Bounded
from ._dit import DiT, DiTBlock, depatchify, patchify
from ._embed import Condition, FourierFeatures, fourier_features
from ._mlp import MLP
from ._reversed import Reversed
from ._unet import UNet

__all__ = [
    "MLP",
    "Bounded",
    "Condition",
    "DiT",
    "DiTBlock",
    "FourierFeatures",
    "Reversed",
    "SelfAttention",
    "UNet",
    "depatchify",
    "fourier_features",
    "patchify",
]
