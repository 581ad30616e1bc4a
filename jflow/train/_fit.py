"""The training loop: progress, metrics, checkpoints, resume."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree
from tqdm import tqdm

from .._kinds import check_kinds
from .._validate import check_count
from ._checkpoint import Checkpoints, open_checkpoints, writable
from ._metrics import Metrics, open_metrics
from ._posthoc import Snapshots
from ._state import State
from ._step import Info, Loss, step

_IN_FLIGHT = 8  # steps dispatched ahead of the device
_fold_in = jax.jit(jr.fold_in)


def fit(
    state: State,
    loss: Loss,
    batches: Callable[[int], PyTree],
    *,
    steps: int,
    key: Key[Array, ""],
    run_dir: str | Path | None = None,
    save_every: int = 1000,
    log_every: int = 50,
    keep: int = 3,
    mesh: Mesh | None = None,
    progress: bool = True,
    on_save: Callable[[State], object] | None = None,
) -> tuple[State, Float[np.ndarray, " n"]]:
    """Trains until `state.step == steps`; returns the state and the loss of every step taken here.

    Step `i`, counted from 0, is `step(state, loss, fold_in(key, i), batches(i))`, one dispatch each (XLA's
    CPU backend runs the gradient of a convolution inside a loop many times slower). The run is so a function
    of the first state, `batches` and `key`: stopped at any moment, even by `kill -9`, and called again with
    the same arguments, it goes on from the last checkpoint in `run_dir` and ends bit for bit where it would
    have.

    Args:
        state: What `init` made, or an earlier call returned.
        loss: As in `step`.
        batches: The batch of step `i`, for `i` in `range(steps)`; see `step`.
        steps: The step at which training ends.
        key: One typed key of the run, of any implementation.
        run_dir: A folder for `metrics.jsonl`, `checkpoints/` and, of a state with a `PowerEMA`, `averages/`; `None`
            writes nothing.
        save_every: Steps between checkpoints, and between snapshots of a `PowerEMA`, which all stay, for `posthoc`. The
            last step has one.
        log_every: Steps between lines `{"step", "loss", "grad_norm", "seconds"}`, `step` being the number of steps
            taken and the loss that of the last one, with the single numbers among its metrics. Losses reach the host
            only then.
        keep: How many of the newest checkpoints stay.
        mesh: Data parallel, as in `step`.
        progress: Whether a progress bar is shown.
        on_save: Called with the state every `save_every` steps and after the last one, each time after the checkpoint,
            as to draw from `state.ema`. It must not keep the state, which the next step donates.

    Ctrl-C ends the current step, writes a checkpoint and raises `KeyboardInterrupt`. A second Ctrl-C stops at once. The
    given state is donated.

    Raises `ValueError` where a loss or gradient is not finite; nothing is saved from that step on, and the last
    checkpoint stays. Raises it too where the folder is not writable or belongs to another run, or a checkpoint in it
    has other shapes or another key.

    ```python
    state = jf.train.init({"w": jnp.array(3.0)}, optax.sgd(0.1))
    state, losses = jf.train.fit(
        state,
        lambda field, key, x: (field["w"] - x) ** 2,
        lambda i: jnp.ones(4),
        steps=20,
        key=jr.key(0),
        progress=False,
    )
    assert state.step == 20 and losses[0] == 4 and losses[-1] < 1e-2
    ```
    """
    check_count(steps=steps, save_every=save_every, log_every=log_every, keep=keep)
    if not callable(batches):
        raise TypeError(
            "batches must be a function of the step, batches(i), so that a run goes on where it stopped. Got "
            f"{type(batches).__name__}: take rows of your data by i, as lambda i: jflow.data.batch(data, 0, i, 128). "
            "From an iterator, lambda i: next(iterator) starts anew where a run goes on."
        )
    check_kinds(fit, locals())
    with contextlib.ExitStack() as stack:
        checkpoints, metrics, snapshots = None, None, None
        if run_dir is not None:
            folder = writable(run_dir)
            checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints", keep))
            if checkpoints.latest() is not None:
                state = checkpoints.restore(state, key)
                checkpoints.set_aside(int(state.step))
            metrics = stack.enter_context(open_metrics(folder / "metrics.jsonl", int(state.step)))
            snapshots = Snapshots(folder, int(state.step))
        start = int(state.step)
        bar = stack.enter_context(tqdm(total=max(steps, start), initial=start, disable=not progress, unit="step"))
        interrupted = stack.enter_context(_deferred_interrupt())
        recorder = _Recorder(start, bar, metrics, checkpoints, batches)
        for i in range(start, steps):
            state, info = step(state, loss, _fold_in(key, np.uint32(i)), batches(i), mesh=mesh)
            recorder.add(info)
            last, stop = i + 1 == steps, interrupted()
            if last or (i + 1) % log_every == 0:
                recorder.fetch(log=True)
            if last or stop or (i + 1) % save_every == 0:
                recorder.save(state, key, None if stop else snapshots)
                if on_save is not None and not stop:
                    on_save(state)
            if stop:
                raise KeyboardInterrupt
    return state, np.asarray(recorder.losses, np.float32)


class _Recorder:
    """What the host knows of a run: losses, log, checkpoints. It looks at the device as rarely as it may."""

    def __init__(
        self,
        start: int,
        bar: tqdm,
        metrics: Metrics | None,
        checkpoints: Checkpoints | None,
        batches: Callable,
    ):
        self.losses: list[float] = []
        self._start, self._bar, self._batches = start, bar, batches
        self._metrics, self._checkpoints = metrics, checkpoints
        self._pending: list[Info] = []

    def add(self, info: Info) -> None:
        self._pending.append(info)
        self._bar.update()
        if len(self._pending) > _IN_FLIGHT:
            self._pending[-_IN_FLIGHT].loss.block_until_ready()

    def fetch(self, *, log: bool) -> None:
        """Brings the losses of the steps since the last call to the host, and checks them."""
        infos, self._pending = jax.device_get(self._pending), []
        for info in infos:
            if not info.finite:
                self._fail(self._explain(info))
            self.losses.append(float(info.loss))
        if log:
            loss, norm = self.losses[-1], float(infos[-1].grad_norm)
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            if self._metrics is not None:
                own = {"loss": loss, "grad_norm": norm}
                self._metrics.write(self._start + len(self.losses), **_numbers(infos[-1].metrics), **own)

    def save(self, state: State, key: Key[Array, ""], snapshots: Snapshots | None) -> None:
        if self._checkpoints is None or self._metrics is None:
            return
        if self._pending:
            self.fetch(log=False)
        if not all(np.isfinite(np.asarray(p)).all() for p in state.params):
            self._fail(
                f"The optimiser's update of step {int(state.step) - 1} (counted from 0), or one shortly before, "
                "took the parameters out of the finite numbers, from a finite gradient. Look at its learning rate."
            )
        self._metrics.sync()
        if snapshots is not None:  # before the checkpoint, after which no run writes them again
            snapshots.save(state)
        self._checkpoints.save(state, key)

    def _explain(self, info: Info) -> str:
        i = self._start + len(self.losses)
        what = f"Step {i} (counted from 0) gave a loss of {info.loss} and a gradient of norm {info.grad_norm}."
        bad = _not_finite(self._batches(i))
        if bad:
            return f"{what} Its batch is not finite in {', '.join(bad)}: correct the data."
        return (
            f"{what} Its batch is finite: try a smaller learning rate, "
            "optax.chain(optax.clip_by_global_norm(1.0), ...), or a law of training times that keeps away from "
            "where the loss is singular."
        )

    def _fail(self, why: str) -> None:
        saved = None if self._checkpoints is None else self._checkpoints.latest()
        kept = "" if saved is None else f" The checkpoint of step {saved} is kept."
        raise ValueError(f"Losses, gradients and parameters must be finite. {why}{kept}")


def _numbers(metrics: PyTree) -> dict[str, float]:
    """The single numbers among the metrics of a loss, by name; a name that the log has already gets a prefix."""
    named = [(jtu.keystr(path, simple=True, separator="."), leaf) for path, leaf in jtu.tree_leaves_with_path(metrics)]
    own = ("", "step", "loss", "grad_norm", "seconds")
    return {f"metrics.{name}" if name in own else name: float(leaf) for name, leaf in named if np.size(leaf) == 1}


def _not_finite(batch: PyTree) -> list[str]:
    """Names of the leaves of a batch that hold a NaN or an infinity."""

    def bad(leaf):
        return eqx.is_inexact_array_like(leaf) and not bool(jnp.all(jnp.isfinite(leaf)))

    return ["batch" + jtu.keystr(path) for path, leaf in jtu.tree_flatten_with_path(batch)[0] if bad(leaf)]


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag and spares the running step, whose state is donated; a second one goes through."""
    seen = []

    def handler(signum: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if previous is None else previous)
