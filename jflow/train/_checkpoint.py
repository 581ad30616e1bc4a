"""Checkpoints: states on disk, written whole or not at all."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key

from .._kinds import check_kinds
from ._state import State

_FORMAT = 1
_ENTRY = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")


def save(folder: str | Path, state: State, *, key: Key[Array, ""] | None = None, keep: int = 3) -> None:
    """Writes the state as `folder/<step>` and removes all but the newest `keep` checkpoints.

    A checkpoint holds parameters, frozen arrays, optimiser, average and step, and the run's `key` where one
    is given; a batch that is a function of the step needs nothing else. It appears under its name when it is
    complete, so that a process killed while writing loses nothing but that one.

    Raises `ValueError` where the folder cannot be written, holds something else than checkpoints, or has
    this step or a later one already.
    """
    check_kinds(save, locals())
    with open_checkpoints(folder, keep) as checkpoints:
        checkpoints.save(state, key)


def restore(folder: str | Path, state: State, *, step: int | None = None, key: Key[Array, ""] | None = None) -> State:
    """The state saved at `step` (by default the newest), for a `state` made by `init` as that run made its
    own.

    All arrays come from the checkpoint, bit for bit; functions and settings come from `state`. No code is
    read from disk. `key` asks that the checkpoint was saved with that key.

    Raises `ValueError` where there is no such checkpoint, its arrays have other names, shapes or types than
    the state's, or it belongs to another key.
    """
    check_kinds(restore, locals())
    with _manager(_existing(folder), create=False) as manager:
        return Checkpoints(Path(folder), manager).restore(state, key, step)


class Checkpoints:
    """An open folder of checkpoints; `save` returns while the files are still being written."""

    def __init__(self, folder: Path, manager: Any):
        self.folder, self._manager = folder, manager

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: State, key: Key[Array, ""] | None = None) -> None:
        import orbax.checkpoint as ocp

        step, latest = int(state.step), self.latest()
        if latest is not None and latest >= step:
            raise ValueError(
                f"Checkpoints of a folder must follow each other. Got a state at step {step} for {self.folder}, "
                f"which has step {latest}; restore from it, or choose another folder."
            )
        arrays = {name: _to_host(leaf) for name, leaf in _named(state).items()}
        manifest = {
            "format": _FORMAT,
            "arrays": _describe(arrays),
            "sha256": _digest(arrays),
            "key": _key_record(key),
        }
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(manifest))
        self._manager.save(step, args=items)

    def restore(self, state: State, key: Key[Array, ""] | None = None, step: int | None = None) -> State:
        import orbax.checkpoint as ocp

        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            raise ValueError(
                f"Restoring must have a complete checkpoint{'' if step is None else f' of step {step}'}. "
                f"Got {self.folder}, which has {f'those of steps {steps}' if steps else 'none'}."
            )
        chosen = steps[-1] if step is None else step
        leaves = _named(state)
        target = {name: jax.eval_shape(_data, leaf) for name, leaf in leaves.items()}
        with _readable(self.folder / str(chosen)):
            items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            manifest = self._manager.restore(chosen, args=items)["manifest"]
        self._check(manifest, target, key, chosen)
        hosts = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in target.items()}
        with _readable(self.folder / str(chosen)):
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(hosts))
            arrays = self._manager.restore(chosen, args=items)["arrays"]
            if _digest({name: arrays[name] for name in leaves}) != manifest["sha256"]:
                raise ValueError("the arrays are not those that were saved")
        restored = [_from_host(arrays[name], leaf) for name, leaf in leaves.items()]
        return jtu.tree_unflatten(jtu.tree_structure(state), restored)

    def _check(self, manifest: Any, target: dict[str, Any], key: Key[Array, ""] | None, step: int) -> None:
        where = self.folder / str(step)
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise ValueError(
                f"A checkpoint must be restored by the version of jflow.train that can read it: format {_FORMAT}. "
                f"Got {where}, which has another; choose another folder."
            )
        saved, wanted = manifest["arrays"], _describe(target)
        if saved != wanted:
            names = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
            lines = [
                f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}" for name in names
            ]
            more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                "A checkpoint must be restored into a state of the same shapes: build it with the network, the "
                "optimiser, the ema and the mask of the run that wrote it. "
                f"Got {where}, which differs in {'; '.join(lines[:4])}{more}."
            )
        if key is not None and manifest["key"] not in (None, _key_record(key)):
            raise ValueError(
                f"A run must go on with the key it was begun with. Got {where}, which was written with another key; "
                "pass that one, or choose another folder."
            )


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, keep: int) -> Iterator[Checkpoints]:
    """The folder, made if need be, for writing; leaving waits for the files."""
    folder = writable(folder)
    foreign = sorted(entry.name for entry in folder.iterdir() if not _ENTRY.fullmatch(entry.name))
    if foreign:
        raise ValueError(
            f"Checkpoints must have a folder of their own. Got {folder}, which holds {', '.join(foreign[:3])}; "
            "choose an empty or a new one."
        )
    if keep < 1:
        raise ValueError(f"keep must be the number of checkpoints to keep, at least 1. Got {keep}.")
    with _manager(folder, max_to_keep=keep, cleanup_tmp_directories=True) as manager:
        yield Checkpoints(folder, manager)


def writable(folder: str | Path) -> Path:
    """The folder, made if need be; raises `ValueError` where nothing can be written into it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"A run must have a folder that it can write into. Got {folder}: {error}. Choose another."
        ) from error
    return folder


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"Restoring must have a folder of checkpoints, as save or fit wrote it. Got {folder}: no such folder."
        )
    return folder


@contextlib.contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[Any]:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("Checkpoints must be written by orbax. Got no orbax: pip install 'jflow[train]'.") from error

    manager = ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(**options))
    try:
        yield manager
    finally:
        manager.close()


@contextlib.contextmanager
def _readable(where: Path) -> Iterator[None]:
    """Whatever goes wrong in reading files is one clear error."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"A checkpoint must be as jflow.train wrote it. Got {where}, which is damaged or not one of its "
            f"own ({type(error).__name__}: {str(error)[:200]}); restore an earlier step, or choose another "
            "folder."
        ) from error


def _named(state: State) -> dict[str, Array]:
    """The arrays of a state under readable names, in the order of its leaves."""
    parts = {
        "field": state.layout.tree(state.params),
        "frozen": state.frozen,
        "opt_state": state.opt_state,
        "average": None if state.average is None else state.layout.tree(state.average),
        "moves": state.moves,
        "step": state.step,
    }
    found = [(name + jtu.keystr(path), leaf) for name, tree in parts.items() for path, leaf in _paths(tree)]
    return dict(found)


def _paths(tree):
    return [(path, leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0] if isinstance(leaf, jax.Array)]


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """The files carry no checksum of their own: a flipped bit would come back as another parameter."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _data(leaf: Array) -> Array:
    """Keys as the integers they are made of."""
    return jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _to_host(leaf: Array) -> np.ndarray:
    """A copy: the next step overwrites donated buffers while the files are being written."""
    return np.array(_data(leaf), copy=True)


def _from_host(host: np.ndarray, like: Array) -> Array:
    array = jnp.array(host, copy=True)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(array, impl=jr.key_impl(like))
    return array


def _key_record(key: Key[Array, ""] | None) -> list[Any] | None:
    return None if key is None else [str(jr.key_impl(key)), np.asarray(jr.key_data(key)).tolist()]
