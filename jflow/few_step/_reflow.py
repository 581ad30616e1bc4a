"""Reflow: the pairs of noise and data that a flow joins, as a data set on disk."""

import json
import os
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._args import Args
from .._batched import generate
from .._field import AbstractField, check_affine
from .._kinds import check_kinds
from .._recommended import recommended
from .._sample import check_ode
from .._sampler import SamplerLike, as_sampler
from .._serialise import to_json
from .._types import Checked, PRNGKey, Shape
from .._validate import check_key, is_real, shown


def reflow(
    file: str | os.PathLike[str],
    field: AbstractField,
    key: PRNGKey,
    n: int,
    shape: Checked[Shape],
    sampler: Checked[SamplerLike | None] = None,
    *,
    label: PyTree = None,
    batch_size: int | None = None,
) -> None:
    """Writes the pairs `(x0, x1)` of a field's flow into an `.npz` file, which `jflow.data.from_npz` reads.

    `x1` is sample `i` of `jflow.generate`, and `x0` the noise that it came from. The file holds the pairs, `x` of shape
    `(n, 2, *event)`, the noise in `x[:, 0]` and the data in `x[:, 1]`; labels of shape `(n,)`, where there are any; and
    `card`, a text in JSON with the kind of the field, its path, the sampler, the key, `n` and the network calls a pair.

    A field trained on pairs has straighter paths. Its path's source must be `Normal(coupled=True)`, since x0 depends
    on x1:

        field = jf.Field(net, jf.CondOT(source=jf.Normal(coupled=True)), "velocity")
        loss = lambda field, key, example: jf.matching_loss(field, key, example["x"][1], x0=example["x"][0])

    Args:
        file: The file, which must not exist.
        field: The field whose flow it is, along a path from its source at t = 0 to the data at t = 1.
        key: The key of `generate`.
        n: The number of pairs.
        shape: The event's shape.
        sampler: A sampler of the ODE from 0 to 1, by default `jflow.recommended(field)`.
        label: The condition of each sample, integers of shape `(n,)`; `None` for none. Entries beside it, as the scale
            of a guided field, come by `Args(label, scale=jnp.full(n, 2.0))`, and are not written.
        batch_size: As in `generate`.

    Raises `ValueError` for a file that exists, a sampler with noise or from another time, a path that starts with data
    in it, or samples that diverge.

    Source: Liu et al. 2022, arXiv:2209.03003 (reflow).

    ```python
    import tempfile

    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    with tempfile.TemporaryDirectory() as folder:
        jf.few_step.reflow(f"{folder}/pairs.npz", field, jr.key(0), 8, (2,))
        pairs = jf.data.from_npz(f"{folder}/pairs.npz")
    assert pairs.x.shape == (8, 2, 2)
    ```
    """
    check_kinds(reflow, locals())
    check_key(key, "reflow")
    if os.path.exists(file):
        raise ValueError(f"Pairs must be written into a new file. Got {file}, which exists: choose another name.")
    if not os.path.isdir(os.path.dirname(os.fspath(file)) or "."):
        raise FileNotFoundError(f"Pairs must be written into a folder that is there. Got {file}: make its folder.")
    path: Any = field.path
    check_affine(path, "Reflow")
    if not (path.alpha(jnp.zeros(())) == 0 and path.sigma(jnp.zeros(())) == 1):
        raise ValueError(
            f"Reflow must have a path that is its source at t = 0. Got {type(path).__name__}, which is not: take "
            "jflow.change_path(field, jflow.CondOT())."
        )
    sampler = recommended(field) if sampler is None else as_sampler(sampler)
    check_ode(field, sampler, "Reflow", forward=True)
    axes, labels = None if label is None else 0, None if label is None else Args.of(label).condition
    if labels is not None and not (is_real(labels) and np.shape(labels)[:1] == (n,)):
        raise ValueError(f"label must be an array with a row for each of the {n} samples. Got {shown(labels)}.")
    saveat = dfx.SaveAt(t0=True)
    out = generate(
        field, key, n, shape, sampler, args=label, args_in_axes=axes, batch_size=batch_size, saveat=saveat,
        progress=False,
    )  # fmt: skip
    if out.ts[0, 0] != 0:
        raise ValueError(f"Pairs must start at t = 0. Got a sampler from t = {out.ts[0, 0]:g}: take one from 0 to 1.")
    if failed := int(np.sum(out.status != 0)):
        raise ValueError(f"Pairs must be finite. Got {failed} of {n} that diverged: take more steps.")
    card = {
        "field": type(field).__name__,
        "path": to_json(path),
        "sampler": to_json(sampler),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "n": n,
        "nfe": None if out.nfe is None else float(np.mean(out.nfe)),
    }
    arrays: dict[str, Any] = {"x": np.stack([out.xs[:, 0], out.x], 1), "card": np.array(json.dumps(card))}
    np.savez(file, **(arrays if labels is None else arrays | {"label": np.asarray(labels)}))
