"""Checkpoints: states on disk, written whole or not at all."""

import contextlib
import hashlib
import itertools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from .._extra import from_extra
from .._kinds import check_kinds
from .._trainable import trainable
from ._average import PowerEMA, each
from ._record import TRAINED, differences, record
from ._state import State, check_alive

_FORMAT = 1
_ENTRY = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?|damaged-\d+")
_SYSTEM = re.compile(r"\..*|Thumbs\.db|desktop\.ini|lost\+found")  # what systems leave in any folder
_LOG = logging.getLogger("jflow")


def save(folder: str | Path, state: State, *, key: Key[Array, ""] | None = None, keep: int = 3) -> None:
    """Writes the state as `folder/<step>` and removes all but the newest `keep` checkpoints.

    A checkpoint holds parameters, frozen arrays, optimiser, average and step, what the field predicts along which path
    from which source, and the run's `key` where one is given; a batch that is a function of the step needs nothing
    else. It appears under its name when it is complete, so that a process killed while writing loses nothing but that
    one.

    Args:
        folder: The folder of the checkpoints, made if need be.
        state: The state to save.
        key: The key of the run, saved beside the state.
        keep: How many of the newest checkpoints stay.

    Raises `ValueError` where the folder cannot be written, holds something else than checkpoints, or has
    this step or a later one already, and `OSError` where the disk is full.

    ```python
    import tempfile

    state = jf.train.init({"w": jnp.array(3.0)}, optax.sgd(0.1))
    with tempfile.TemporaryDirectory() as folder:
        jf.train.save(folder, state)
        assert jf.train.restore(folder, state).field["w"] == 3
    ```
    """
    check_kinds(save, locals())
    check_alive(state)
    with open_checkpoints(folder, keep) as checkpoints:
        checkpoints.save(state, key)


def restore(folder: str | Path, state: State, *, step: int | None = None, key: Key[Array, ""] | None = None) -> State:
    """The state saved at `step` (by default the newest), for a `state` made by `init` as that run made its
    own.

    All arrays come from the checkpoint, bit for bit; functions and settings come from `state`. No code is
    read from disk. Where the newest is damaged, the one before is taken, and a warning is logged.

    Args:
        folder: The folder of the checkpoints.
        state: A state made by `init` with the network, the optimiser and the options of that run.
        step: The step of the checkpoint, by default the newest.
        key: The key that the checkpoint must have been saved with.

    Raises `ValueError` where there is no such checkpoint or it is damaged, its arrays have other names, shapes or
    types than the state's, its field another path, prediction or source, or it belongs to another key.

    ```python
    import tempfile

    saved, fresh = (jf.train.init({"w": jnp.array(w)}, optax.sgd(0.1)) for w in (3.0, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        jf.train.save(folder, saved, key=jr.key(0))
        assert jf.train.restore(folder, fresh, key=jr.key(0)).field["w"] == 3
    ```
    """
    with from_extra("A folder of checkpoints"):
        import orbax.checkpoint  # noqa: F401

    check_kinds(restore, locals())
    with _manager(_existing(folder), create=False) as manager:
        return Checkpoints(Path(folder), manager).restore(state, key, step)


def warm_start(
    folder: str | Path, field: PyTree, *, average: bool = True, step: int | None = None
) -> tuple[PyTree, dict[str, str]]:
    """The field with the trained arrays of a checkpoint that have the same names and shapes, and what was left.

    To fine-tune a model that has something more, as another condition, and to go on with another optimiser:
    `jf.train.init(field, optax.adamw(schedule))` begins at step 0 with the weights alone. A flow map begins as a flow:
    the networks of `jflow.nn` with two times have the parameters of those with one, and `length`, zero at the start.

    Args:
        folder: The folder of the checkpoints.
        field: A field as `init` takes it. What it has and the checkpoint has not stays as it is.
        average: Whether the running average is taken, where there is one, the first of several; otherwise the last
            parameters are.
        step: The step of the checkpoint, by default the newest.

    Returns:
        The field, and for each array of either that found no partner its name and why.

    Raises `ValueError` where there is no such checkpoint or it is damaged, no array fits, or the field has another
    path, prediction or source.

    ```python
    import tempfile

    adam = jf.train.init({"w": jnp.array(3.0), "old": jnp.ones(2)}, optax.adam(0.1))
    with tempfile.TemporaryDirectory() as folder:
        jf.train.save(folder, adam)
        field, left = jf.train.warm_start(folder, {"w": jnp.array(0.0), "new": jnp.zeros(3)})
    state = jf.train.init(field, optax.adamw(1e-3))
    assert state.field["w"] == 3 and sorted(left) == ["['new']", "['old']"]
    ```
    """
    check_kinds(warm_start, locals())
    with _manager(_existing(folder), create=False) as manager:
        return Checkpoints(Path(folder), manager).take(field, average, step)


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
            "field": _record(state),
        }
        manifest["check"] = _check_sum(manifest)
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(manifest))
        with _written(self.folder):
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when the files are written."""
        with _written(self.folder):
            self._manager.wait_until_finished()

    def restore(self, state: State, key: Key[Array, ""] | None = None, step: int | None = None) -> State:
        return self._newest_whole(step, lambda candidate: self._restore(state, key, candidate))

    def take(self, field: PyTree, average: bool, step: int | None) -> tuple[PyTree, dict[str, str]]:
        """What `warm_start` returns."""
        return self._newest_whole(step, lambda candidate: self._take(field, average, candidate))

    def _newest_whole(self, step: int | None, read: Callable[[int], Any]) -> Any:
        """What is read of the checkpoint of this step, by default of the newest that is not damaged."""
        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            raise ValueError(
                f"Restoring must have a complete checkpoint{'' if step is None else f' of step {step}'}. "
                f"Got {self.folder}, which has {f'those of steps {steps}' if steps else 'none'}."
            )
        chosen = steps[::-1] if step is None else [step]
        for i, candidate in enumerate(chosen):
            try:
                return read(candidate)
            except _DamagedError as error:
                if i + 1 == len(chosen):
                    raise
                _LOG.warning("%s Taking the one before, of step %d.", error, chosen[i + 1])
        raise AssertionError

    def set_aside(self, step: int) -> None:
        """Renames the checkpoints after `step`, which are damaged: the run writes those steps anew."""
        for later in [later for later in self._manager.all_steps() if later > step]:
            aside = self.folder / f"damaged-{later}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(later)).rename(aside)
        self._manager.reload()

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints after `step`: the run writes them anew."""
        for later in [later for later in self._manager.all_steps() if later > step]:
            self._manager.delete(later)
        self._manager.reload()

    def _restore(self, state: State, key: Key[Array, ""] | None, chosen: int) -> State:
        leaves = _named(state)
        target = {name: jax.eval_shape(_data, leaf) for name, leaf in leaves.items()}
        manifest = self._manifest(chosen)
        self._check(manifest, target, key, chosen)
        self._check_field(manifest, _record(state), chosen)
        arrays = self._arrays(manifest, chosen)
        restored = [_from_host(arrays[name], leaf) for name, leaf in leaves.items()]
        return jtu.tree_unflatten(jtu.tree_structure(state), restored)

    def _take(self, field: PyTree, average: bool, chosen: int) -> tuple[PyTree, dict[str, str]]:
        manifest = self._manifest(chosen)
        self._check_format(manifest, chosen)
        flags = jtu.tree_leaves(trainable(field))
        flat, treedef = jtu.tree_flatten_with_path(field)
        known = [TRAINED if flag else leaf for flag, (_, leaf) in zip(flags, flat, strict=True)]
        wanted = _of_velocity(record(treedef.unflatten(known)))
        saved = {name: words for name, words in manifest.get("field", wanted).items() if not name.startswith("ema")}
        self._check_field({"field": _of_velocity(saved)}, wanted, chosen)
        arrays = self._arrays(manifest, chosen)
        parts = {kind: _part(arrays, kind) for kind in (*(("average[0]", "average") if average else ()), "field")}
        saved = next(part for part in parts.values() if part.keys() == parts["field"].keys())
        left, leaves = dict.fromkeys(saved, "only in the checkpoint"), []
        for flag, (path, leaf) in zip(flags, flat, strict=True):
            name = jtu.keystr(path)
            if flag and name in saved and saved[name].shape == leaf.shape:
                del left[name]
                leaf = jnp.array(saved[name], leaf.dtype, copy=True)
            elif flag:
                shape = f"of shape {list(saved[name].shape)} in the checkpoint" if name in saved else None
                left[name] = shape or "only in the field"
            leaves.append(leaf)
        if not set(saved) - set(left):
            raise ValueError(
                "A checkpoint must have an array that fits the field. Got "
                f"{self.folder / str(chosen)}, of which none does: {_short_list(left)}."
            )
        return treedef.unflatten(leaves), left

    def _manifest(self, chosen: int) -> Any:
        import orbax.checkpoint as ocp

        with _readable(self.folder / str(chosen)):
            items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            manifest = self._manager.restore(chosen, args=items)["manifest"]
            if isinstance(manifest, dict) and manifest.get("format") == _FORMAT:
                own = _check_sum(manifest)
                if manifest.get("check", own) != own or not {"arrays", "sha256", "key"} <= set(manifest):
                    raise ValueError("the manifest is not the one that was saved")
        return manifest

    def _arrays(self, manifest: dict[str, Any], chosen: int) -> dict[str, np.ndarray]:
        """All arrays of a checkpoint, checked."""
        import orbax.checkpoint as ocp

        with _readable(self.folder / str(chosen)):
            hosts = {name: _empty(words) for name, words in manifest["arrays"].items()}
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(hosts))
            arrays = self._manager.restore(chosen, args=items)["arrays"]
            if _digest({name: arrays[name] for name in hosts}) != manifest["sha256"]:
                raise ValueError("the arrays are not those that were saved")
        return arrays

    def _check(self, manifest: Any, target: dict[str, Any], key: Key[Array, ""] | None, step: int) -> None:
        self._check_format(manifest, step)
        where = self.folder / str(step)
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

    def _check_format(self, manifest: Any, step: int) -> None:
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise ValueError(
                f"A checkpoint must be restored by the version of jflow.train that can read it: format {_FORMAT}. "
                f"Got {self.folder / str(step)}, which has another; choose another folder."
            )

    def _check_field(self, manifest: Any, wanted: dict[str, str], step: int) -> None:
        saved = manifest.get("field", wanted)  # the first checkpoints did not record it
        if other := differences(saved, wanted):
            raise ValueError(
                "A checkpoint must be restored into a field of the same prediction, path and source, and averages of "
                "the same widths: the same weights mean something else in another. "
                f"Got {self.folder / str(step)}, which differs in {other}."
            )


def _of_velocity(found: dict[str, str]) -> dict[str, str]:
    """A record in which a flow map is the field of its velocity, which it is on the diagonal."""
    return {name: "Field" if words == "FlowMap" else words for name, words in found.items()}


class _DamagedError(ValueError):
    """A checkpoint that cannot be read, whatever it is restored into."""


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, keep: int) -> Iterator[Checkpoints]:
    """The folder, made if need be, for writing; leaving waits for the files."""
    folder = writable(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not _ENTRY.fullmatch(name) and not _SYSTEM.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"Checkpoints must have their own folder. Got {folder}, which holds {', '.join(foreign[:3])}; "
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
    with from_extra("A folder of checkpoints"):
        import orbax.checkpoint as ocp

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)  # orbax logs a traceback of each error that it raises later
    try:
        manager = ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(**options))
        try:
            yield manager
        finally:
            with _written(folder):
                manager.close()
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in writing files is one clear error."""
    try:
        yield
    except Exception as error:
        whole = [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal()]
        kept = f" The checkpoint of step {max(whole)} is kept." if whole else ""
        raise OSError(
            f"A checkpoint must be written whole. Got {folder}, where that failed ({_short(error)}): free space on the "
            f"disk, and go on.{kept}"
        ) from error


@contextlib.contextmanager
def _readable(where: Path) -> Iterator[None]:
    """Whatever goes wrong in reading files is one clear error."""
    try:
        yield
    except Exception as error:
        raise _DamagedError(
            f"A checkpoint must be as jflow.train wrote it. Got {where}, which is damaged or not one of its "
            f"own ({_short(error)}); restore an earlier step, or choose another "
            "folder."
        ) from error


def _short(error: Exception) -> str:
    """What an error of the libraries below says, on one line."""
    words = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {words if len(words) < 300 else f'{words[:100]} ... {words[-190:]}'}"  # causes last
    )


def _record(state: State) -> dict[str, str]:
    """What the field of a state is beside its arrays, and the widths of its averages."""
    ema = state.layout.ema
    kinds = each(ema, ema, lambda rule, _: str(rule) if isinstance(rule, PowerEMA) else "decay")
    rules = {f"ema{i}": kind for i, kind in enumerate(jtu.tree_leaves(kinds))}
    return record(state.layout.field(itertools.repeat(TRAINED), state.frozen)) | rules


def _check_sum(manifest: dict[str, Any]) -> str:
    """The checksum of a manifest but for the entry that holds it."""
    own = {name: value for name, value in manifest.items() if name != "check"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _named(state: State) -> dict[str, Array]:
    """The arrays of a state under readable names, in the order of its leaves."""
    parts = {
        "field": state.layout.tree(state.params),
        "frozen": state.frozen,
        "opt_state": state.opt_state,
        "average": each(state.layout.ema, state.average, lambda _, average: state.layout.tree(average)),
        "moves": state.moves,
        "step": state.step,
    }
    found = [(name + jtu.keystr(path), leaf) for name, tree in parts.items() for path, leaf in _paths(tree)]
    return dict(found)


def _paths(tree):
    return [(path, leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0] if isinstance(leaf, jax.Array)]


def _part(arrays: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The arrays whose names are this kind with a path or nothing behind it, by that path."""
    paths = {name: name[len(kind) :] for name in arrays if name.startswith(kind)}
    return {path: arrays[name] for name, path in paths.items() if path[:1] in ("", ".", "[")}


def _short_list(left: dict[str, str]) -> str:
    lines = [f"{name} is {why}" for name, why in left.items()]
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _empty(words: str) -> np.ndarray:
    """An array as `_describe` names it, as `float32[3, 2]`."""
    kind, _, shape = words.partition("[")
    return np.empty([int(side) for side in shape[:-1].split(",") if side], jnp.dtype(kind))


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """The files have no checksum: a flipped bit would come back as another parameter."""
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
