"""The training loop: progress, metrics, checkpoints, resume."""

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from .._types import Checked
from .._validate import check_count, is_real
from ._checkpoint import Checkpoints, open_checkpoints, writable
from ._couple import Couple
from ._metrics import Metrics, open_metrics
from ._posthoc import Snapshots
from ._state import State, check_alive
from ._step import Info, Loss, step, steps_at_once

_IN_FLIGHT = 8  # steps dispatched ahead of the device
_fold_in = jax.jit(jr.fold_in)
_LOG = logging.getLogger("jflow")

Line = dict[str, float]
"""What is known of a step, by name."""
Callback = Callable[[State, Line], Line | None]


def fit(
    state: State,
    loss: Loss,
    batches: Checked[Callable[[int], PyTree]],
    *,
    steps: int,
    key: Key[Array, ""],
    run_dir: str | Path | None = None,
    save_every: int = 1000,
    log_every: int = 50,
    keep: int = 3,
    mesh: Mesh | None = None,
    couple: Couple | None = None,
    microbatch: int | None = None,
    steps_per_call: int = 1,
    every: Checked[tuple[int, Callback] | Sequence[tuple[int, Callback]]] = (),
    best: str | None = None,
    max_skips: int = 0,
    progress: bool = True,
) -> tuple[State, Float[np.ndarray, " n"]]:
    """Trains until `state.step == steps`; returns the state and `losses`, an array: the loss of each step taken here.

    Step `i`, counted from 0, is `step(state, loss, fold_in(key, i), batches(i))`. The run is so a function of the first
    state, `batches` and `key`: stopped at any moment, even by `kill -9`, and called again with the same arguments, it
    goes on from the last checkpoint in `run_dir` and ends bit for bit where it would have. A run that has `steps`
    already takes none, and `losses` is empty.

    Where a run goes on, the loss, the batches, the decay of the average and the numbers of the optimiser may be others,
    as its learning rate: they count from there on. The network, its path and prediction, the key and the form of the
    optimiser's state must stay. A schedule in place of a number changes that form, as it adds a count of steps.

    Args:
        state: What `init` made, or an earlier call returned.
        loss: As in `step`.
        batches: The batch of step `i`, for `i` in `range(steps)`; see `step`. A map data set of `grain`, batched, is
            taken as it is: the batch of step `i` is `batches[i]`.
        steps: The step at which training ends. A finished run goes on if it is called again with more.
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
        couple: A coupling of each batch, or the name of its plan, as in `step`.
        microbatch: How many examples are taken at a time, as in `step`.
        steps_per_call: How many steps are one program, for a device that waits for Python. It divides all other numbers
            of steps. On a CPU 1 is best: XLA runs the gradient of a convolution inside a loop many times slower there.
        every: `(n, function)`, or several such pairs: `function(state, line)` is called every `n` steps and after the
            last one, before the checkpoint. `line` holds the numbers of that step by name. A dictionary of numbers that
            it returns goes into the line, as `{"held_out": jf.train.mean_loss(state.ema, loss, key, test)}`. It must
            not keep the state, which the next step donates.
        best: The name of a number of the lines, as `"held_out"`, `"loss"` or a metric of the loss: the state with the
            lowest stays as a checkpoint in `run_dir/best`, for `restore`.
        max_skips: How many steps in a row may have a loss or a gradient that is not finite. They change nothing and
            are warned of in the log `jflow`; their losses come back as they are, and they have no line.
        progress: Whether a progress bar is shown, on a terminal, whose rate counts from the second step, and at the end
            a sentence on the run and on how it goes on.

    Ctrl-C ends the current step, writes a checkpoint and raises `KeyboardInterrupt`. A second Ctrl-C stops at once. The
    given state is donated.

    Raises `ValueError` where the loss or the gradient of more than `max_skips` steps in a row is not finite; nothing is
    saved from the last one on, and the last checkpoint stays. Raises it too for a state that an earlier step was given,
    and where the folder is not writable or belongs to another run, or a checkpoint in it has other shapes or another
    key.

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
    batches, callbacks = _by_step(batches), _callbacks(every)
    check_kinds(fit, locals())
    check_alive(state)
    counts = {f"every[{i}]": n for i, (n, _) in enumerate(callbacks)}
    _check_calls(steps_per_call, steps=steps, save_every=save_every, log_every=log_every, **counts)
    if best is not None and run_dir is None:
        raise ValueError(f"best must have a folder for its checkpoint: pass run_dir=. Got best={best!r} without one.")
    if max_skips < 0:
        raise ValueError(f"max_skips must be a number of steps, at least 0. Got {max_skips}.")
    with contextlib.ExitStack() as stack:
        files = None
        if run_dir is not None:
            folder = writable(run_dir)
            checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints", keep))
            if checkpoints.latest() is not None:
                state = checkpoints.restore(state, key)
                checkpoints.set_aside(int(state.step))
            metrics = stack.enter_context(open_metrics(folder / "metrics.jsonl", int(state.step)))
            files = _Files(checkpoints, metrics, Snapshots(folder, int(state.step)))
            if best is not None:
                files.best = stack.enter_context(open_checkpoints(folder / "best", 1))
                files.best.remove_after(int(state.step))
        start = int(state.step)
        _check_calls(steps_per_call, start=start)
        bar = stack.enter_context(_bar(start, steps, progress))
        interrupted = stack.enter_context(_deferred_interrupt())
        recorder = _Recorder(start, bar, files, batches, best, max_skips)
        begun = time.monotonic()
        for i in range(start, steps, steps_per_call):
            if steps_per_call == 1:
                state, info = step(
                    state,
                    loss,
                    _fold_in(key, np.uint32(i)),
                    batches(i),
                    mesh=mesh,
                    couple=couple,
                    microbatch=microbatch,
                )
            else:
                rows = [batches(j) for j in range(i, i + steps_per_call)]
                state, info = steps_at_once(state, loss, key, i, rows, mesh, couple, microbatch)
            recorder.add(info, steps_per_call)
            if i == start:
                _count_from_here(bar, info)
                begun = time.monotonic()
            stop, taken = interrupted(), i + steps_per_call
            due = [function for n, function in callbacks if _is_due(taken, n, steps)]
            logs = _is_due(taken, log_every, steps)
            if due or logs:
                recorder.fetch()
                recorder.log(state, key, due, always=logs)
            saves = _is_due(taken, save_every, steps)
            if stop or saves:
                recorder.save(state, key, snapshot=saves)
            if stop:
                raise KeyboardInterrupt
    if progress:
        print(_told(start, steps, recorder, time.monotonic() - begun, run_dir), file=sys.stderr)
    return state, np.asarray(recorder.losses, np.float32)


def _is_due(taken: int, n: int, steps: int) -> bool:
    """Whether something of every `n` steps, and of the last, is due after so many."""
    return taken % n == 0 or taken == steps


def _check_calls(steps_per_call: int, **counts: int) -> None:
    """Raises `ValueError` for numbers of steps that do not end with a call."""
    check_count(steps_per_call=steps_per_call)
    if odd := {name: count for name, count in counts.items() if count % steps_per_call}:
        raise ValueError(
            f"steps_per_call must divide all other numbers of steps. Got {steps_per_call} with "
            f"{', '.join(f'{name}={count}' for name, count in odd.items())}."
        )


def _by_step(batches: Any) -> Callable[[int], PyTree]:
    """The batch of a step, as a function."""
    if callable(batches):
        return batches
    if any(kind.__module__.split(".")[0] == "grain" and hasattr(kind, "__getitem__") for kind in type(batches).__mro__):
        return batches.__getitem__
    raise TypeError(
        "batches must be a function of the step, batches(i), so that a run goes on where it stopped. Got "
        f"{type(batches).__name__}: take rows of your data by i, as lambda i: jflow.data.batch(data, 0, i, 128). "
        "From an iterator, lambda i: next(iterator) starts anew where a run goes on."
    )


def _callbacks(every: Any) -> list[tuple[int, Callback]]:
    """The pairs of `every=`, checked."""
    pairs = [every] if isinstance(every, tuple) and len(every) == 2 and callable(every[1]) else every
    for pair in pairs if isinstance(pairs, (list, tuple)) else [pairs]:
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            raise TypeError(
                "every must be a pair of a number of steps and a function, (500, draw), or a list of such pairs. Got "
                f"{pair!r}."
            )
        check_count(every=pair[0])
    return list(pairs)


def _bar(start: int, steps: int, progress: bool) -> Any:
    """The bar of a run, on a terminal only."""
    hidden = None if progress and steps > start else True
    return tqdm(total=max(steps, start), initial=start, desc="fit, compiling", unit="step", disable=hidden)


def _count_from_here(bar: Any, info: Info) -> None:
    """The first step compiles: the rate and the time left count from the second."""
    if not bar.disable:
        info.loss.block_until_ready()
        done = bar.n
        bar.reset(bar.total)
        bar.initial = bar.n = bar.last_print_n = done
        bar.set_description("fit")


def _told(start: int, steps: int, recorder: "_Recorder", seconds: float, run_dir: Any) -> str:
    """What a run was, and what goes on from it."""
    more, losses = f"fit(..., steps={2 * max(start, steps)}) goes on from here", recorder.losses
    if not losses:
        return f"fit: the run has {start} steps already; {more}."
    rate = f", {(len(losses) - 1) / seconds:.3g} a second" if len(losses) > 1 and seconds > 0 else ""
    kept = "" if run_dir is None else f" in {run_dir}"
    skipped = f" ({recorder.skipped} skipped)" if recorder.skipped else ""
    return (
        f"fit: steps {start} to {steps}{skipped}{kept}{rate}; loss {losses[0]:.4g} at the first, {losses[-1]:.4g} at "
        f"the last. {more}; jf.generate(state.ema, key, n, shape) draws, jf.save(file, state.ema) keeps."
    )


class _Files:
    """What a run writes."""

    def __init__(self, checkpoints: Checkpoints, metrics: Metrics, snapshots: Snapshots):
        self.checkpoints, self.metrics, self.snapshots = checkpoints, metrics, snapshots
        self.best: Checkpoints | None = None


class _Recorder:
    """What the host knows of a run: losses, log, checkpoints. It looks at the device as rarely as it may."""

    def __init__(
        self, start: int, bar: tqdm, files: _Files | None, batches: Callable, best: str | None, max_skips: int
    ):
        self.losses: list[float] = []
        self._start, self._bar, self._files, self._batches = start, bar, files, batches
        self._pending: list[Info] = []
        self._last: Info | None = None
        self.skipped, self._skips, self._max_skips = 0, 0, max_skips
        self._name = best
        self._least = math.inf if best is None or files is None else files.metrics.least(best)

    def add(self, info: Info, count: int) -> None:
        self._pending.append(info)
        self._bar.update(count)
        if len(self._pending) > _IN_FLIGHT:
            self._pending[-_IN_FLIGHT].loss.block_until_ready()

    def fetch(self) -> None:
        """Brings the losses of the steps since the last call to the host, and checks them."""
        infos, self._pending = jax.device_get(self._pending), []
        for info in [one for several in infos for one in _single(several)]:
            self._skips = 0 if info.finite else self._skips + 1
            if self._skips > self._max_skips:
                self._fail(self._explain(info))
            if not info.finite:
                _LOG.warning("%s It is skipped.", self._what(info))
                self.skipped += 1
            self.losses.append(float(info.loss))
            self._last = info

    def log(self, state: State, key: Key[Array, ""], callbacks: list[Callback], *, always: bool) -> None:
        """Adds the line of the last step, with what the callbacks return, and keeps the best state.

        Not `always`: only where they return something.
        """
        info = self._last
        assert info is not None
        step = self._start + len(self.losses)
        own = {**_numbers(info.metrics), "loss": self.losses[-1], "grad_norm": float(info.grad_norm)}
        line: Line = own if info.finite else {}
        for function in callbacks:
            line = line | _returned(function(state, {"step": step, **line}), line)
        if not info.finite or not (always or len(line) > len(own)):
            return
        value = math.nan if self._name is None else line.get(self._name, math.nan)
        shown = {"loss": line["loss"]} | ({} if math.isnan(value) else {str(self._name): value})
        self._bar.set_postfix({name: f"{number:.4g}" for name, number in shown.items()}, refresh=False)
        if self._files is None:
            return
        self._files.metrics.write(step, **line)
        if self._files.best is not None and value < self._least:
            self._check(state)
            self._least = value
            self._files.best.save(state, key)
            self._files.best.wait()  # the next checkpoint counts on it: the line of this step is not written again

    def save(self, state: State, key: Key[Array, ""], *, snapshot: bool) -> None:
        if self._files is None:
            return
        if self._pending:
            self.fetch()
        self._check(state)
        self._files.metrics.sync()
        if snapshot:  # before the checkpoint, after which no run writes them again
            self._files.snapshots.save(state)
        self._files.checkpoints.save(state, key)

    def _check(self, state: State) -> None:
        if not all(np.isfinite(np.asarray(p)).all() for p in state.params):
            self._fail(
                f"The optimiser's update of step {int(state.step) - 1} (counted from 0), or one shortly before, "
                "took the parameters out of the finite numbers, from a finite gradient. Look at its learning rate."
            )

    def _what(self, info: Info) -> str:
        row = f", number {self._skips} in a row," if self._skips > 1 else ""
        return (
            f"Step {self._start + len(self.losses)} (counted from 0){row} gave a loss of {info.loss} and a gradient of "
            f"norm {info.grad_norm}."
        )

    def _explain(self, info: Info) -> str:
        what = self._what(info)
        bad = _not_finite(self._batches(self._start + len(self.losses)))
        if bad:
            return f"{what} Its batch is not finite in {', '.join(bad)}: correct the data."
        return (
            f"{what} Its batch is finite: try a smaller learning rate, "
            "optax.chain(optax.clip_by_global_norm(1.0), ...), or a law of training times that keeps away from "
            "where the loss is singular."
        )

    def _fail(self, why: str) -> None:
        saved = None if self._files is None else self._files.checkpoints.latest()
        kept = "" if saved is None else f" The checkpoint of step {saved} is kept."
        raise ValueError(f"Losses, gradients and parameters must be finite. {why}{kept}")


_OWN = ("", "step", "loss", "grad_norm", "seconds")


def _returned(numbers: Any, line: Line) -> Line:
    """What a callback of `every=` returned, as numbers of a line."""
    numbers = {} if not isinstance(numbers, dict) else numbers
    for name, value in numbers.items():
        if not isinstance(name, str) or name in line or name in _OWN or not is_real(value) or np.size(value) != 1:
            raise ValueError(
                "A function of every= must return nothing, or numbers by names that the line of the step has not yet. "
                f"Got {name!r} with a {type(value).__name__}, where the line has {', '.join(line)}."
            )
    return {name: float(value) for name, value in numbers.items()}


def _single(info: Info) -> list[Info]:
    """The steps of one call, on the host."""
    rows = range(np.size(info.loss))
    return [jtu.tree_map(lambda leaf: leaf[i], info) for i in rows] if np.ndim(info.loss) else [info]  # noqa: B023


def _numbers(metrics: PyTree) -> dict[str, float]:
    """The single numbers among the metrics of a loss, by name; a name that the log has already gets a prefix."""
    named = [(jtu.keystr(path, simple=True, separator="."), leaf) for path, leaf in jtu.tree_leaves_with_path(metrics)]
    return {f"metrics.{name}" if name in _OWN else name: float(leaf) for name, leaf in named if np.size(leaf) == 1}


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
