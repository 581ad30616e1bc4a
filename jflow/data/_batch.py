"""Batches: of arrays in memory by seed and step, of anything larger through grain."""

import functools as ft
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Int

from .._extra import from_extra
from .._kinds import check_kinds
from .._types import Checked
from .._validate import shown
from ._dataset import Dataset, check_seed


def batch(dataset: Dataset, seed: int, step: int, batch_size: int) -> dict[str, np.ndarray]:
    """Batch number `step`, a pure function of the arguments: nothing to save, nothing to restore.

    The data set is read epoch after epoch, each in a fresh order drawn by `(seed, epoch)`, and this endless
    sequence is cut into batches: within an epoch no example is seen twice, and the batch that meets its end
    is filled from the next.

    Args:
        dataset: The examples.
        seed: The seed of the order.
        step: The number of the batch, from 0.
        batch_size: The number of examples in a batch.

    Returns `{"x": (batch_size, *event), "label": (batch_size,)}`, without `"label"` where there is none.
    Raises `ValueError` for a batch size below 1 or a negative step or seed.

    ```python
    data = jf.data.from_array(np.arange(6.0)[:, None])
    epoch = [x for step in range(3) for x in jf.data.batch(data, seed=0, step=step, batch_size=2)["x"][:, 0]]
    assert sorted(epoch) == [0, 1, 2, 3, 4, 5]
    ```
    """
    check_kinds(batch, locals())
    # Not grain's MapDataset, which gives the same promise one example at a time: a batch of 128 digits takes it
    # milliseconds, this gather ten microseconds.
    _check_size(batch_size)
    if step < 0 or seed < 0:
        raise ValueError(f"Steps and seeds must count from 0. Got step={step}, seed={seed}.")
    n, start = len(dataset), int(step) * batch_size
    stop = start + batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    index = [_order(n, int(seed), e)[max(start - e * n, 0) : stop - e * n] for e in epochs]
    return dataset[np.concatenate(index)]


@ft.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """The order of one epoch; kept while its batches are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(n)


def loader(
    source: Checked[Sequence[dict[str, ArrayLike]]], batch_size: int, seed: int = 0
) -> Iterable[dict[str, np.ndarray]]:
    """Endless shuffled batches of a set too large for memory, as a `grain.IterDataset`.

    `source` has `len(source)` and `source[i]`, one record as a dictionary of arrays: grain's own sources, or
    any object that reads record `i` from disk (a `Dataset` is one too). Four batches are read ahead, in threads.
    The iterator's position is a few numbers, by `get_state()` and `set_state(state)`, which
    `grain.checkpoint.CheckpointSave` hands to orbax. Needs grain. For arrays in memory prefer `batch`.

    Args:
        source: An object with `len(source)` and `source[i]`, one record as a dictionary of arrays.
        batch_size: The number of records in a batch.
        seed: The seed of the order.

    Raises `ValueError` for an empty source, a batch size below 1, or a seed that is negative or from 2^32 on.

    ```python
    data = jf.data.from_array(np.arange(6.0)[:, None])
    assert next(iter(jf.data.loader(data, batch_size=4)))["x"].shape == (4, 1)
    ```
    """
    check_kinds(loader, {**locals(), "source": ()})  # whatever has a length and rows
    with from_extra("jflow.data.loader"):
        import grain

    _check_size(batch_size)
    check_seed(seed)
    if isinstance(source, (str, bytes)) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(f"source must have len(source) and source[i]. Got {shown(source)}.")
    if len(source) == 0:
        raise ValueError("A data set must have at least one example. Got an empty source.")
    # a thread reads a batch: threads that take turns at small records cost more than the records
    batches = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"A batch must have at least one example. Got batch_size={batch_size}.")
