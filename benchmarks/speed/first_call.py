"""Prints the seconds of one first call: `first_call.py sample`, or `first_call.py network`."""

import sys
import time

import jax
import jax.random as jr
from flax import nnx

import jflow as jf

net = jf.nn.MLP(2, rngs=nnx.Rngs(0))
field, key = jf.Field(net, jf.CondOT(), predicts="velocity"), jr.key(0)
x = jax.block_until_ready(jr.normal(key, (2,)))
start = time.perf_counter()
if sys.argv[1] == "sample":
    jax.block_until_ready(jf.sample(field, key, (2,)).x)
else:
    jax.block_until_ready(jax.jit(lambda net, x: net(0.5, x, None))(net, x))
print(time.perf_counter() - start)
