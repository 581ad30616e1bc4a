"""The kernel of self-attention: cuDNN's on a CUDA device, where it takes the type and the size of a head; else XLA's.

cuDNN's kernel has a backward pass, and no derivative in forward mode. So `attend` defines its derivatives. The one in
forward mode is XLA's. Its transpose is the backward pass of the device that the program is compiled for, which takes
what the forward pass kept for it. Derivatives of derivatives are XLA's.
"""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def attend(qkv: Float[Array, "n 3 heads size"]) -> Float[Array, "n heads size"]:
    """`softmax(Q K' / sqrt(size)) V` for every head."""
    return _attention(qkv)[0] if _has_kernel(qkv) else _xla(qkv)


def _has_kernel(qkv):
    """Whether cuDNN is there, and takes this type and shape: JAX says so. Devices before Ampere have no such kernel."""
    try:
        jax.eval_shape(_cudnn, jax.ShapeDtypeStruct(qkv.shape, qkv.dtype))
    except (NotImplementedError, RuntimeError):
        return False
    return all(float(d.compute_capability) >= 8 for d in jax.local_devices() if d.platform == "gpu")


def _known(array):
    return all(isinstance(n, int) for n in array.shape)


def _by(implementation):
    """The attention, for any number of leading axes. cuDNN takes no size that is known only when a program runs."""

    def attention(qkv):
        q, k, v = jnp.moveaxis(qkv.reshape(-1, *qkv.shape[-4:]), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v, implementation=implementation if _known(qkv) else "xla")
        return out.reshape(*qkv.shape[:-3], *qkv.shape[-2:])

    return attention


_xla, _cudnn = _by("xla"), _by("cudnn")


def _push(qkv, dqkv, *kept):
    """The derivative at `qkv` along `dqkv`."""
    return jax.jvp(_xla, (qkv,), (dqkv,))[1]


def _pull(qkv, cotangent, *kept):
    """The derivative transposed."""
    return [jax.vjp(_xla, qkv)[1](cotangent)[0]]


def _cudnn_saved(qkv):
    """The attention, and what its backward pass reads: every array of cuDNN's pull-back that holds numbers."""
    flat = qkv.reshape(-1, *qkv.shape[-4:])
    if not _known(flat):
        return [_cudnn(qkv)]
    out, pull = jax.vjp(_cudnn, flat)
    kept = [leaf for leaf in jtu.tree_leaves(pull) if leaf.size]
    return [array.reshape(*qkv.shape[:-4], *array.shape[1:]) for array in (out, *kept)]


def _xla_saved(qkv):
    return [_xla(qkv), *(jnp.zeros(kept.shape, kept.dtype) for kept in jax.eval_shape(_cudnn_saved, qkv)[1:])]


def _cudnn_pull(qkv, cotangent, *kept):
    flat, rest = qkv.reshape(-1, *qkv.shape[-4:]), iter(kept)
    if not _known(flat):
        return _pull(qkv, cotangent)
    shapes, treedef = jtu.tree_flatten(jax.eval_shape(lambda flat: jax.vjp(_cudnn, flat)[1], flat))
    leaves = [next(rest).reshape(s.shape) if s.size else jnp.zeros(s.shape, s.dtype) for s in shapes]
    return [treedef.unflatten(leaves)(cotangent.reshape(-1, *cotangent.shape[-3:]))[0].reshape(qkv.shape)]


def _primitive(name, plain, cuda):
    """A primitive of arrays that share their leading axes: `cuda` on CUDA devices, `plain` elsewhere."""
    made = Primitive(name)
    made.multiple_results = True

    def bind(*args):
        # JAX gives its devices to the lowering of a program that holds cuDNN's kernel, and looks for that in parameters
        return made.bind(*args, kernel=jax.make_jaxpr(cuda)(*args))

    jitted = jax.jit(bind)
    made.def_impl(lambda *args, kernel: jitted(*args))
    made.def_abstract_eval(lambda *args, kernel: kernel.out_avals)
    for platform, program in ((None, plain), ("cuda", cuda)):
        rule = mlir.lower_fun(lambda *args, kernel, program=program: program(*args), multiple_results=True)
        mlir.register_lowering(made, rule, platform=platform)
    batching.primitive_batchers[made] = lambda args, axes, kernel: (
        outs := bind(*_together(args, axes)),
        [0] * len(outs),
    )
    return made, bind


def _together(args, axes):
    """The arrays with the mapped axis in front of each."""
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    return [batching.bdim_at_front(*pair, size) for pair in zip(args, axes, strict=True)]


def _tangent(f, primals, tangents):
    """Of a function of two arrays, whatever was kept beside them."""
    return jax.jvp(f, primals[:2], tuple(map(ad.instantiate_zeros, tangents[:2])))


_attention_p, _attention = _primitive("attention", lambda qkv: [_xla(qkv)], lambda qkv: [_cudnn(qkv)])
_saved_p, _saved = _primitive("attention_saved", _xla_saved, _cudnn_saved)
_backward_p, _backward = _primitive("attention_backward", _pull, _cudnn_pull)
_forward = Primitive("attention_forward")
"""`_push`, with a transpose that is the backward pass of the device."""


def _saved_jvp(primals, tangents, kernel):
    out, *kept = _saved(*primals)
    along = _forward.bind(*primals, *map(ad.instantiate_zeros, tangents), *kept)
    return [out, *kept], [along, *(ad.Zero(jax.typeof(array)) for array in kept)]  # nothing kept is differentiated


def _attention_jvp(primals, tangents, kernel):
    outs, along = _saved_jvp(primals, tangents, kernel)
    return outs[:1], along[:1]


def _forward_transposed(cotangent, qkv, dqkv, *kept):
    zero = type(cotangent) is ad.Zero
    return None, ad.Zero(dqkv.aval) if zero else _backward(qkv, cotangent, *kept)[0], *([None] * len(kept))


def _forward_batched(args, axes):
    if axes[0] is None:  # many directions at one point: XLA computes once what these share
        return jax.vmap(_push, in_axes=axes[:2])(*args[:2]), 0
    return _forward.bind(*_together(args, axes)), 0


_forward.def_impl(jax.jit(_push))
_forward.def_abstract_eval(lambda qkv, dqkv, *kept: qkv.update(shape=jax.eval_shape(_push, qkv, dqkv).shape))
mlir.register_lowering(_forward, mlir.lower_fun(_push, multiple_results=False))
batching.primitive_batchers[_forward] = _forward_batched
ad.primitive_transposes[_forward] = _forward_transposed
ad.primitive_jvps[_forward] = lambda primals, tangents: _tangent(_push, primals, tangents)
ad.primitive_jvps[_attention_p] = _attention_jvp
ad.primitive_jvps[_saved_p] = _saved_jvp
ad.primitive_jvps[_backward_p] = lambda primals, tangents, kernel: _tangent(_pull, primals, tangents)
