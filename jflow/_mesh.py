"""Meshes: the same function over the shards of a batch."""

from collections.abc import Callable

import jax
import jax.tree_util as jtu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with shardings left to the compiler, whatever its axis types."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def repeated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """`tree` with its arrays on every device of the mesh: they may lie on another, where a field was trained."""
    if mesh is None:
        return tree
    on_all = NamedSharding(automatic(mesh), PartitionSpec())
    return jtu.tree_map(lambda leaf: jax.device_put(leaf, on_all) if isinstance(leaf, jax.Array) else leaf, tree)


def shard_batch(fn: Callable[..., PyTree], mesh: Mesh, num_batched: int) -> Callable[..., PyTree]:
    """`fn` with its last `num_batched` arguments and its outputs split over the first axis of the mesh.

    The other arguments are replicated. There are no collectives: each device works on its samples alone.
    """
    mesh, batched = automatic(mesh), PartitionSpec(mesh.axis_names[0])

    def sharded(*args):
        specs = (PartitionSpec(),) * (len(args) - num_batched) + (batched,) * num_batched
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=batched, check_vma=False)(*args)

    return sharded


def count_devices(mesh: PyTree) -> int:
    """Devices that a batch is split over."""
    return 1 if mesh is None else mesh.shape[mesh.axis_names[0]]


def check_split(batch_size: int, devices: int) -> None:
    """Raises `ValueError` where the batch does not split evenly over the devices."""
    if batch_size % devices:
        raise ValueError(
            f"batch_size must be a multiple of the devices of the mesh. Got {batch_size} for {devices} devices; "
            f"try batch_size={devices * max(1, round(batch_size / devices))}."
        )
