"""A model is a file: a field with its weights, in the safetensors layout, read without running any code."""

import hashlib
import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._code import arguments
from .._field import AbstractField, Field, Preconditioned
from .._flow_map import FlowMap
from .._kinds import check_kinds
from .._serialise import from_json, to_json
from .._trainable import trainable
from ._record import TRAINED, differences, record

__all__ = ["load", "save"]

_FORMAT = "jflow 1"
_FIELDS: dict[str, type] = {kind.__name__: kind for kind in (Field, Preconditioned, FlowMap)}
_KINDS = {
    "bool": "BOOL",
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_NO_DIGEST = "0" * 64


def save(path: str | Path, field: AbstractField, *, overwrite: bool = False) -> None:
    """Writes a field into one file: network, path, prediction, source and weights.

    `load` makes the field again, in a fresh process and without the script that trained it. The layout is that of
    safetensors: the length of a header, the header in JSON, the arrays. What makes the field is in the header: the
    constructor's arguments of a network of `jf.nn`, and the path as `to_json` writes it. The file gets its name when
    it is whole, so a kill leaves no half of it.

    Your own classes are not in the file, only their arrays. Then `load` must be given something like them: a network
    where the network is yours, and a field where the field, the path, the source or the prediction is. A path of
    functions, as `CustomPath`, is one that is yours.

    Args:
        path: The file, as `"model.safetensors"`.
        field: The field, as `state.ema`.
        overwrite: Whether a file of this name is replaced.

    Raises `TypeError` where `field` is not a field, `ValueError` where the file exists or an array has a type that
    safetensors lacks, and `OSError` where the file cannot be written.

    ```python
    import tempfile, pathlib
    field = jf.Field(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.safetensors")
        jf.save(file, field)
        again = jf.load(file)
    assert (again.velocity(0.5, jnp.ones(2)) == field.velocity(0.5, jnp.ones(2))).all()
    ```
    """
    if not isinstance(field, AbstractField):
        raise TypeError(f"A model must be a field, as state.ema or state.field. Got {type(field).__name__}.")
    check_kinds(save, locals())
    write_model(path, field, {}, overwrite=overwrite)


def load(path: str | Path, like: Any = None) -> Any:
    """The field that `save` wrote, its arrays bit for bit.

    Nothing is unpickled and no code of the file is run: it names a class of jflow's and the arguments of its
    constructor.

    Args:
        path: The file.
        like: For a network that is not one of `jf.nn`, one like it that you built. For a field, path, source or
            prediction that `to_json` does not know, a field like it. Its arrays are replaced. They must have the same
            names, shapes and types, and may be `jax.ShapeDtypeStruct`, as `equinox.filter_eval_shape` gives them.

    Raises `FileNotFoundError` where there is no such file, and `ValueError` where it is damaged (every bit is under a
    checksum), was written by something else, lacks what makes its network, or holds arrays of other names, shapes or
    types than `like`, or a field of another path, prediction or source.

    ```python
    import tempfile, pathlib
    def mine(params, t, x, args):
        return params["w"] * x

    def field(w):
        return jf.Field(jax.tree_util.Partial(mine, {"w": w}), jf.CondOT(), "velocity")

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.safetensors")
        jf.save(file, field(jnp.array([2.0, 3.0])))
        again = jf.load(file, field(jnp.zeros(2)).net)
    assert (again.net.args[0]["w"] == jnp.array([2.0, 3.0])).all()
    ```
    """
    check_kinds(load, locals())
    return filled(path, *read_model(path), like)


def filled(path: str | Path, about: dict[str, str], arrays: dict[str, np.ndarray], net: Any) -> Any:
    """What the header describes, around `net` where that is given, with the arrays; `path` is for messages."""
    known = json.loads(about["field"])
    if isinstance(net, AbstractField) or (net is not None and not known["record"]):  # no record: of no field
        like = net
    elif known["why"] is not None and (net is None or known["made"] is None):
        given = "a field like it" if known["made"] is None else "a network like it"
        raise ValueError(
            f"A model must have what makes it, or be loaded into {given}: jf.load(path, like). "
            f"Got {path}, which lacks it: {known['why']}"
        )
    else:
        like = _decoded(known["made"], net)
    leaves, settings = _leaves(like)
    _check(path, known["record"], _record(like), "a field of the same path, prediction and source")
    _check(path, known["settings"], settings, "a network with the same settings")
    _check(path, _described(arrays), _described(leaves), "arrays of the same names, shapes and types")
    flat, treedef = jtu.tree_flatten_with_path(like)
    filled = [_from_host(arrays[_name(where)], leaf) if _name(where) in leaves else leaf for where, leaf in flat]
    return jtu.tree_unflatten(treedef, filled)


def write_model(path: str | Path, field: Any, more: dict[str, str], *, overwrite: bool) -> None:
    """`save`, with more entries in the header, of any pytree."""
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(
            f"A model must not be overwritten by accident. Got {path}, which exists: choose another name, or pass "
            "overwrite=True."
        )
    leaves, settings = _leaves(field)
    made, why = _encoded(field)
    known = {"made": made, "why": why, "record": _record(field), "settings": settings}
    blob = pack(
        {name: np.asarray(_data(leaf)) for name, leaf in leaves.items()},
        {"format": _FORMAT, "field": json.dumps(known), **more},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            partial = Path(scratch) / path.name
            with partial.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        raise OSError(f"A model must have a file that can be written whole. Got {path}: {error}.") from error


def read_model(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The header's entries and the arrays of a file of `save`'s, checked."""
    try:
        blob = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"A model must be in a file that jf.save wrote. There is no file {path}.") from None
    except OSError as error:
        raise ValueError(f"A model must be in a file that can be read. Got {path}: {error}.") from error
    try:
        about, arrays = unpack(blob)
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}, and this version of jflow reads {_FORMAT!r}")
    except Exception as error:  # of a file from anywhere
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"A model must be in a file as jf.save wrote it. Got {path}, which is damaged or something else ({why})."
        ) from error
    return about, arrays


def pack(arrays: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
    """Arrays and words in the layout of safetensors, with the SHA-256 of all bytes among the words.

    The checksum is of the file with 64 zeros in its own place.
    """
    header: dict[str, Any] = {"__metadata__": {**about, "sha256": _NO_DIGEST}}
    offset = 0
    for name, array in arrays.items():
        if array.dtype.name not in _KINDS:
            raise ValueError(f"A model must hold numbers that safetensors knows. Got {array.dtype.name} at {name}.")
        offsets = [offset, offset := offset + array.nbytes]
        header[name] = {"dtype": _KINDS[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blob = b"".join([struct.pack("<Q", len(text)), text, *(array.tobytes() for array in arrays.values())])
    return blob.replace(_NO_DIGEST.encode(), hashlib.sha256(blob).hexdigest().encode(), 1)


def unpack(blob: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The words and the arrays of `pack`; raises where a bit is not as it was written."""
    (size,) = struct.unpack_from("<Q", blob)
    if size > len(blob) - 8:
        raise ValueError(f"a header of {size} bytes in a file of {len(blob)}")
    header = json.loads(blob[8 : 8 + size])
    about = header.pop("__metadata__")
    digest = about["sha256"].encode()
    if len(digest) != len(_NO_DIGEST) or _sum(blob, digest) != about["sha256"]:
        raise ValueError("its checksum is another")
    return about, {name: _tensor(blob, 8 + size, **entry) for name, entry in header.items()}


def _sum(blob: bytes, digest: bytes) -> str:
    """The checksum of a file with zeros in the place of its checksum."""
    before, _, after = blob.partition(digest)
    found = hashlib.sha256(before)
    found.update(_NO_DIGEST.encode())
    found.update(after)
    return found.hexdigest()


def _tensor(blob: bytes, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    first, last = data_offsets
    kind = jnp.dtype(_NAMES[dtype])
    if math.prod(shape) * kind.itemsize != last - first:
        raise ValueError(f"{last - first} bytes for {kind.name}{shape}")
    return np.frombuffer(blob, kind, math.prod(shape), start + first).reshape(shape)


def _encoded(field: Any) -> tuple[dict[str, Any] | None, str | None]:
    """What makes a field, as JSON, without its network where that is not one of `jf.nn`; and why something is left."""
    if type(field) not in _FIELDS.values():
        return None, f"{type(field).__name__} is not one of {', '.join(_FIELDS)}."
    try:
        given = {name: json.loads(to_json(part)) for name, part in arguments(field).items() if name != "net"}
    except TypeError as error:
        return None, str(error)
    net: Any = arguments(field)["net"]
    made = {"class": type(field).__name__, "net": _encoded_net(net), "arguments": given}
    return made, None if made["net"] else f"its network is {type(net).__name__}, which is not one of jf.nn as built."


def _networks() -> dict[str, type]:
    """The networks of `jf.nn` that keep the arguments of their constructors."""
    from .. import nn

    return {kind.__name__: kind for kind in (nn.MLP, nn.UNet, nn.DiT)}


def _encoded_net(net: Any) -> dict[str, Any] | None:
    """What makes a network of `jf.nn`; `None` for another, and for one that was changed after it was built."""
    from ..nn import Bounded
    from ..nn._arguments import rebuilt, to_words

    if isinstance(net, Bounded):
        inner = _encoded_net(net.net)
        return inner and {"class": "Bounded", "net": inner, "arguments": {"low": net.low, "high": net.high}}
    if type(net) not in _networks().values():
        return None
    words = to_words(net.arguments)
    same = _described(_leaves(rebuilt(type(net), words))[0]) == _described(_leaves(net)[0])
    return {"class": type(net).__name__, "arguments": words} if same else None


def _decoded_net(made: dict[str, Any]) -> Any:
    from ..nn import Bounded
    from ..nn._arguments import rebuilt

    if made["class"] == "Bounded":
        return Bounded(_decoded_net(made["net"]), **made["arguments"])
    kind = _networks().get(made["class"])
    if kind is None:
        raise ValueError(f"A network must be one of jf.nn. Got {made['class']!r}.")
    return rebuilt(kind, made["arguments"])


def _decoded(made: dict[str, Any], net: Any) -> AbstractField:
    """The field that a file describes, around a network given or made."""
    if made["class"] not in _FIELDS:
        raise ValueError(f"A field must be one of {', '.join(_FIELDS)}. Got {made['class']!r}.")
    given = {name: from_json(json.dumps(part)) for name, part in made["arguments"].items()}
    return _FIELDS[made["class"]](net=_decoded_net(made["net"]) if net is None else net, **given)


def _name(where: Any) -> str:
    return jtu.keystr(where, simple=True, separator=".")


def _leaves(tree: PyTree) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a tree by name, and its other leaves that are numbers or words."""
    named = [(_name(where), leaf) for where, leaf in jtu.tree_leaves_with_path(tree)]
    arrays = {name: leaf for name, leaf in named if isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))}
    plain = {name: repr(leaf) for name, leaf in named if isinstance(leaf, (bool, int, float, complex, str))}
    return arrays, plain


def _record(field: Any) -> dict[str, str]:
    """What distinguishes the field from others, but for its network, whose arrays are compared."""
    marked = jtu.tree_map(lambda flag, leaf: TRAINED if flag else leaf, trainable(field), field)
    return record(marked)


def _described(arrays: dict[str, Any]) -> dict[str, str]:
    shapes = {name: jax.eval_shape(_data, leaf) for name, leaf in arrays.items()}
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in sorted(shapes.items())}


def _check(path: str | Path, saved: dict[str, str], wanted: dict[str, str], rule: str) -> None:
    if other := differences(saved, wanted):
        raise ValueError(f"A model must be loaded into {rule}. Got {path}, which differs in {other}.")


def _data(leaf: Any) -> Any:
    """Keys as the integers they are made of."""
    return jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _from_host(host: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return host.copy()
    array = jnp.array(host, copy=True)
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return jr.wrap_key_data(array, impl=jr.key_impl(like)) if is_key else array
