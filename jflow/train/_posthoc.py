"""Averages of any width after the training: snapshots of a run's power averages, and what is made of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._kinds import check_kinds
from ._average import PowerEMA, each, power_rules
from ._model import filled, read_model, write_model
from ._state import State

_FOLDER = "averages"
_ENTRY = re.compile(r"(\d+)-[\d.e-]+\.safetensors")
_MOST_ERROR = 0.2


def posthoc(run_dir: str | Path, width: float, net: PyTree | None = None) -> PyTree:
    """The field with the `PowerEMA` of another width, from the snapshots that `fit` stored in `run_dir/averages`.

    Each snapshot is an average with a known profile of weights over the moves. Their combination whose profile is
    nearest to that of the width at the last snapshot, in least squares and with weights of sum 1, is solved for and
    summed in float64. With the widths 0.05 and 0.1 and eight snapshots of each, the profile of any width between is
    met to about one percent; what is stored already comes back as it is.

    Args:
        run_dir: The folder of a run of `fit`, whose state was made with a `PowerEMA`, better with two of them.
        width: The width, as in `PowerEMA`.
        net: As in `jflow.load`: for a network that is not one of `jf.nn`, one like it; for what is no `Field`, all of
            it.

    Raises `ValueError` where there are no snapshots, one is damaged, or their profiles cannot make the width's to 20
    percent, and as `jflow.load` does.

    Source: Karras et al. 2024, arXiv:2312.02696, section 3.1 and appendix C.

    ```python
    import tempfile

    averages = (jf.train.PowerEMA(0.05), jf.train.PowerEMA(0.1))
    state = jf.train.init({"w": jnp.array(3.0)}, optax.sgd(0.1), ema=averages)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"steps": 20, "save_every": 2, "key": jr.key(0), "run_dir": folder, "progress": False}
        jf.train.fit(state, lambda field, key, x: (field["w"] - x) ** 2, lambda i: jnp.ones(4), **settings)
        between = jf.train.posthoc(folder, 0.075, {"w": jnp.array(0.0)})
    assert between["w"].shape == ()
    ```
    """
    check_kinds(posthoc, locals())
    wanted = PowerEMA(width)
    files = _files(Path(run_dir))
    if not files:
        raise ValueError(
            "A post-hoc average must have the snapshots of a run of fit, whose state was made with "
            f"ema=(PowerEMA(0.05), PowerEMA(0.1)). Got {run_dir}, where {_FOLDER}/ has none."
        )
    known = [_about(file)[0] for file in files]
    moves = np.array([about["moves"] for about in known], float)
    gammas = np.array([PowerEMA(about["width"]).gamma for about in known])
    weights, error = _weights(moves / moves.max(), gammas, wanted.gamma)
    if error > _MOST_ERROR:
        raise ValueError(
            f"The width of a post-hoc average must be one that the snapshots can make. Got {width}, whose profile "
            f"{len(files)} snapshots of the widths {sorted({about['width'] for about in known})} miss by "
            f"{error:.0%}: take a width nearer to these, or store more by a smaller save_every."
        )
    total: dict[str, Any] = {}
    for file, weight in zip(files, weights, strict=True):
        about, header, arrays = _about(file)
        for name in about["types"]:
            part = weight * arrays[name].astype(np.result_type(arrays[name].dtype, np.float64))
            total[name] = total[name] + part if name in total else part
    about, header, arrays = _about(files[-1])
    trained = {name: np.asarray(total[name], jnp.dtype(kind)) for name, kind in about["types"].items()}
    return filled(files[-1], header, {**arrays, **trained}, net)


class Snapshots:
    """The snapshots of a run, from the step `start` on: later ones are the run's to write again."""

    def __init__(self, run_dir: Path, start: int):
        self._run_dir = run_dir
        for file in _files(run_dir):
            if _step(file) > start:
                file.unlink()
        for scratch in (run_dir / _FOLDER).glob(".partial-*"):
            shutil.rmtree(scratch, ignore_errors=True)

    def save(self, state: State) -> None:
        """Writes the power averages of the state, each as a model in float32 or wider."""
        rules, moves = power_rules(state.layout.ema), int(state.moves)
        if not rules or not moves:
            return
        fields: Any = each(state.layout.ema, state.average, lambda _, a: state.layout.field(a, state.frozen))
        fields = fields if isinstance(state.layout.ema, tuple) else (fields,)
        several = state.layout.ema if isinstance(state.layout.ema, tuple) else (state.layout.ema,)
        named = jtu.tree_leaves_with_path(eqx.filter(state.field, eqx.is_array))
        types = {
            jtu.keystr(where, simple=True, separator="."): leaf.dtype.name
            for (where, leaf), flag in zip(named, state.layout.trained, strict=True)
            if flag
        }
        for rule, field in zip(several, fields, strict=True):
            if isinstance(rule, PowerEMA):
                path = self._run_dir / _FOLDER / f"{int(state.step)}-{rule.width!r}.safetensors"
                about = {"average": json.dumps({"width": rule.width, "moves": moves, "types": types})}
                write_model(path, field, about, overwrite=True)


def _files(run_dir: Path) -> list[Path]:
    """The snapshots in the order of their steps."""
    return sorted((f for f in (run_dir / _FOLDER).glob("*") if _ENTRY.fullmatch(f.name)), key=_step)


def _step(file: Path) -> int:
    return int(file.name.split("-")[0])


def _about(file: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, np.ndarray]]:
    """What a snapshot is an average of, its header and its arrays."""
    header, arrays = read_model(file)
    return json.loads(header["average"]), header, arrays


def _weights(shares: np.ndarray, gammas: np.ndarray, gamma: float) -> tuple[np.ndarray, float]:
    """The weights of sum 1 whose mix of the profiles is nearest to that of `gamma` at share 1, and how near it is.

    A profile is `(g+1) s^g / share^(g+1)` on [0, share], so all inner products are closed. Snapshots of one profile
    leave the system singular: least squares takes the smallest weights.
    """
    n = len(shares)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = _products(shares[:, None], gammas[:, None], shares, gammas)
    system[n, n] = 0.0
    target = np.append(_products(shares, gammas, 1.0, gamma), 1.0)
    weights = np.linalg.lstsq(system, target, rcond=1e-14)[0][:n]
    weights = weights / weights.sum()
    square = _products(1.0, gamma, 1.0, gamma)
    left = weights @ system[:n, :n] @ weights - 2 * weights @ target[:n] + square
    return weights, float(np.sqrt(max(0.0, left) / square))


def _products(t: Any, g: Any, other_t: Any, other_g: Any) -> Any:
    """The integrals of the products of two profiles."""
    first, late, g_late = np.minimum(t, other_t), np.maximum(t, other_t), np.where(t >= other_t, g, other_g)
    return (g + 1) * (other_g + 1) / (g + other_g + 1) / late * (first / late) ** g_late
