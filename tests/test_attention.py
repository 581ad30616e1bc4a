"""The kernel of self-attention: which one a program has, and that all derivatives are those of XLA's."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

import jflow as jf
from jflow.nn._kernel import _xla, attend

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("
CHECKS = [jax.export.DisabledSafetyCheck.custom_call(name) for name in ("__cudnn$fmhaSoftmax",)]
QKV = jr.normal(jr.key(0), (2, 6, 3, 2, 8))


@pytest.fixture
def cudnn(monkeypatch):
    """A jaxlib with cuDNN, as far as tracing sees."""

    class Versions:
        cudnn_get_version = staticmethod(lambda: 91100)

    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", Versions)
    yield
    jax.clear_caches()  # no other test is to find programs of a jaxlib that is not there


def program(f, *args, platform="cuda"):
    """The text of a program lowered for a platform. Calls lose their quotes, so that the end of a name shows."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text().replace('"', "")


def kernels(*args, **options):
    text = program(*args, **options)
    return FORWARD in text, BACKWARD in text


def loss(qkv):
    return jnp.sum(jnp.sin(jax.vmap(attend)(qkv).astype(jnp.float32)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_cudnn_s_kernel_on_cuda_alone(cudnn, dtype):
    qkv = QKV.astype(dtype)
    assert kernels(loss, qkv) == (True, False)
    assert kernels(jax.grad(loss), qkv) == (True, True)
    assert program(jax.grad(loss), qkv).count(FORWARD) == 1  # the backward pass has what it reads from the forward one
    if dtype == jnp.bfloat16:  # on CPUs XLA's attention has no float16
        assert kernels(loss, qkv, platform="cpu") == kernels(jax.grad(loss), qkv, platform="cpu") == (False, False)


def test_other_types_and_sizes_have_xla_s(cudnn):
    for qkv in (QKV, QKV.astype(jnp.bfloat16)[..., :7], jnp.zeros((2, 6, 3, 2, 136), jnp.bfloat16)):
        assert kernels(jax.grad(loss), qkv) == (False, False)


@pytest.mark.parametrize("batch", ["batch", "2"])
def test_a_program_for_many_platforms_has_the_kernel_where_the_batch_is_known(cudnn, batch):
    (n,) = jax.export.symbolic_shape(batch)
    qkv = jax.ShapeDtypeStruct((n, 6, 3, 2, 8), jnp.bfloat16)
    exported = jax.export.export(jax.jit(jax.vmap(attend)), platforms=["cpu", "cuda"], disabled_checks=CHECKS)(qkv)
    assert ("cudnn" in exported.mlir_module()) == (batch == "2")
    assert exported.call(QKV.astype(jnp.bfloat16)).shape == (2, 6, 2, 8)


def test_without_cudnn_a_program_has_xla_s():
    assert kernels(jax.grad(loss), QKV.astype(jnp.bfloat16)) == (False, False)


def test_a_transformer_samples_and_trains_by_the_kernel_and_its_jvp_is_xla_s(cudnn):
    net = jf.nn.DiT((4, 4, 1), patch=2, dim=16, layers=1, heads=2, times=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.zeros((3, 4, 4, 1))

    def call(net, x):
        return jnp.sum(jax.vmap(lambda x: net(0.0, 1.0, x))(x).astype(jnp.float32))

    assert kernels(call, net, x) == (True, False)
    assert kernels(jax.grad(call, allow_int=True), net, x) == (True, True)
    along = lambda net, x: jax.jvp(lambda x: call(net, x), (x,), (jnp.ones_like(x),))[1]  # noqa: E731
    assert kernels(along, net, x) == (True, False)
    assert kernels(jax.grad(along, allow_int=True), net, x) == (True, True)  # as few-step models are trained


def derivatives(f, x, v):
    """Values and derivatives of `f` by forward, reverse and both modes, and by `jax.linearize` for many directions."""
    many = lambda x: jax.vmap(jax.linearize(f, x)[1])(jnp.stack([v[0], 2 * v[0]]))  # noqa: E731
    pulled = lambda x: jax.vjp(f, x)[1](jnp.ones_like(f(x)))[0]  # noqa: E731
    pushed = lambda x: jax.jvp(f, (x,), (v[0],))[1]  # noqa: E731
    reverse_over_forward = jax.grad(lambda x: jnp.sum(pushed(x) ** 2))
    reverse_over_reverse = jax.grad(lambda x: jnp.sum(pulled(x) ** 2))
    each = (f, pulled, pushed, many, jax.checkpoint(pulled), jax.jacrev(lambda x: f(x)[0]))
    return [jax.vmap(g)(x) for g in (*each, reverse_over_reverse, reverse_over_forward)]


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [False, True])
def test_the_derivatives_are_those_of_xla_s(cudnn, jitted):
    x, wrap = QKV.astype(jnp.bfloat16), jax.jit if jitted else lambda f: f
    v = jnp.cos(x)
    ours, theirs = (wrap(lambda x, f=f: derivatives(f, x, v))(x) for f in (attend, _xla))
    for ours_, theirs_ in itertools.zip_longest(ours, theirs):
        np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (ours_, theirs_)), rtol=3e-2, atol=3e-2)
    assert jnp.any(ours[-1] != 0)
