"""The kernel of self-attention: cuDNN's on a CUDA device, where it takes the type and the size of a head; else XLA's.

cuDNN's kernel has a backward pass, and no derivative in forward mode. So `attend` defines its derivatives. The one in
forward mode is XLA's. Its transpose is the backward pass of the device that the program is compiled for. Derivatives of
derivatives are XLA's.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def attend(qkv: Float[Array, "n 3 heads size"]) -> Float[Array, "n heads size"]:
    """`softmax(Q K' / sqrt(size)) V` for every head."""
    return _attention(qkv) if _has_kernel(qkv) else _xla(qkv)


def _has_kernel(qkv):
    """Whether cuDNN is there, and takes this type and shape: JAX says so. Devices before Ampere have no such kernel."""
    try:
        jax.eval_shape(_cudnn, jax.ShapeDtypeStruct(qkv.shape, qkv.dtype))
    except (NotImplementedError, RuntimeError):
        return False
    return all(float(d.compute_capability) >= 8 for d in jax.local_devices() if d.platform == "gpu")


def _by(implementation):
    """The attention, for any number of leading axes. cuDNN takes no size that is known only when a program runs."""

    def attention(qkv):
        known = all(isinstance(n, int) for n in qkv.shape)
        q, k, v = jnp.moveaxis(qkv.reshape(-1, *qkv.shape[-4:]), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v, implementation=implementation if known else "xla")
        return out.reshape(*qkv.shape[:-3], *qkv.shape[-2:])

    return attention


_xla, _cudnn = _by("xla"), _by("cudnn")


def _push(qkv, dqkv):
    """The derivative at `qkv` along `dqkv`."""
    return jax.jvp(_xla, (qkv,), (dqkv,))[1]


def _pull(kernel):
    """The derivative transposed. It computes the attention again, of which nothing is kept until then."""
    return lambda qkv, cotangent: jax.vjp(kernel, qkv)[1](cotangent)[0]


def _primitive(name, plain, cuda):
    """A primitive of arrays that share their leading axes: `cuda` on CUDA devices, `plain` elsewhere."""
    made = Primitive(name)

    def bind(*args):
        # JAX gives its devices to the lowering of a program that holds cuDNN's kernel, and looks for that in parameters
        return made.bind(*args, kernel=jax.make_jaxpr(cuda)(*args))

    jitted = jax.jit(bind)
    made.def_impl(lambda *args, kernel: jitted(*args))
    made.def_abstract_eval(lambda *args, kernel: args[0].update(shape=kernel.out_avals[0].shape))
    for platform, program in ((None, plain), ("cuda", cuda)):
        rule = mlir.lower_fun(lambda *args, kernel, program=program: program(*args), multiple_results=False)
        mlir.register_lowering(made, rule, platform=platform)
    batching.primitive_batchers[made] = lambda args, axes, kernel: (bind(*_together(args, axes)), 0)
    return made, bind


def _together(args, axes):
    """The arrays with the mapped axis in front of each."""
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    return [batching.bdim_at_front(*pair, size) for pair in zip(args, axes, strict=True)]


def _tangent(f, primals, tangents):
    return jax.jvp(f, primals, tuple(map(ad.instantiate_zeros, tangents)))


_attention_p, _attention = _primitive("attention", _xla, _cudnn)
_backward_p, _backward = _primitive("attention_backward", _pull(_xla), _pull(_cudnn))
_forward = Primitive("attention_forward")
"""`_push`, with a transpose that is the backward pass of the device."""


def _attention_jvp(primals, tangents, kernel):
    return _attention(*primals), _forward.bind(*primals, *map(ad.instantiate_zeros, tangents))


def _forward_transposed(cotangent, qkv, dqkv):
    zero = type(cotangent) is ad.Zero
    return None, ad.Zero(dqkv.aval) if zero else _backward(qkv, cotangent)


def _forward_batched(args, axes):
    if axes[0] is None:  # many directions at one point: XLA computes once what these share
        return jax.vmap(_push, in_axes=axes)(*args), 0
    return _forward.bind(*_together(args, axes)), 0


_forward.def_impl(jax.jit(_push))
_forward.def_abstract_eval(lambda qkv, dqkv: qkv.update(shape=jax.eval_shape(_push, qkv, dqkv).shape))
mlir.register_lowering(_forward, mlir.lower_fun(_push, multiple_results=False))
batching.primitive_batchers[_forward] = _forward_batched
ad.primitive_transposes[_forward] = _forward_transposed
ad.primitive_jvps[_forward] = lambda primals, tangents: _tangent(_push, primals, tangents)
ad.primitive_jvps[_attention_p] = _attention_jvp
ad.primitive_jvps[_backward_p] = lambda primals, tangents, kernel: _tangent(_pull(_xla), primals, tangents)
