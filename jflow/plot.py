"""Pictures: grids of images, trajectories, densities, loss curves, and noise becoming data.

A function draws into `ax` where one is given, else into a new figure, and returns the figure; nothing is shown
and no global state is touched, as figures are made without pyplot. Save with `figure.savefig(path)`. Needs
matplotlib, and pillow for an animation.
"""

import itertools as it
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence, Sized
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, ArrayLike, Num, PyTree

from ._extra import from_extra
from ._kinds import check_kinds
from ._validate import check_count, is_real, shown

# of Okabe and Ito's palette, which can be distinguished with any colour vision
NOISE, DATA, INK = "#0072B2", "#D55E00", "#444444"

Numbers = Num[ArrayLike, "..."] | Sequence[PyTree]


def image_grid(
    images: Numbers,
    labels: Sequence[object] | Num[np.ndarray, " n"] | None = None,
    *,
    ncols: int | None = None,
    title: str | None = None,
    ax: PyTree = None,
) -> "matplotlib.figure.Figure":
    """Images `(n, H, W, C)` in [-1, 1], `C` 1 or 3, row by row in `ncols` columns (by default a square).

    What lies outside [-1, 1] is shown as the nearer end. `labels`, one for each image, are written above them.

    Args:
        images: The images.
        labels: One label for each image, written above it.
        ncols: The number of columns; by default the rows and columns form a square.
        title: The title of the axes.
        ax: The matplotlib axes to draw on; by default those of a new figure.

    Raises `ValueError` for another shape, values that are not finite, or another number of labels.

    ```python
    figure = jf.plot.image_grid(np.zeros((4, 8, 8, 1)), labels=[0, 1, 2, 3])
    assert len(figure.axes) == 1
    ```
    """
    check_kinds(image_grid, locals())
    images = _images(images, 4, "(n, H, W, C)")
    n, height, width, _ = images.shape
    if labels is not None and not (isinstance(labels, Sized) and len(labels) == n):
        got = len(labels) if isinstance(labels, Sized) else shown(labels)
        raise ValueError(f"There must be one label for each image. Got {got} for {n} images.")
    ncols = _columns(n, ncols)
    gap, top = _gap(height), 0 if labels is None else math.ceil(0.3 * height)
    sheet = _sheet(images, ncols, gap, top)
    inches = min(12.0, max(2.0, 0.6 * ncols))
    ax = _axes(ax, (inches, inches * sheet.shape[0] / sheet.shape[1]), title)
    ax.imshow(sheet, interpolation="nearest")
    ax.set_axis_off()
    for i, label in enumerate([] if labels is None else labels):
        row, column = divmod(i, ncols)
        x = gap + column * (width + gap) + (width - 1) / 2
        y = (row + 1) * (gap + top + height) - height - 0.5
        ax.text(x, y, str(label), ha="center", va="bottom", fontsize=min(9, 14 * inches / ncols), color=INK)
    return ax.figure


def trajectories(
    xs: Numbers, ts: Numbers | None = None, *, title: str | None = None, ax: PyTree = None
) -> "matplotlib.figure.Figure":
    """Paths `(batch, n + 1, 2)` in the plane, or `(batch, n + 1)` over the times `ts`, `(n + 1,)`.

    Without `ts`, paths of numbers run over the steps. Starts and ends are marked by colour. Raises `ValueError`
    for other shapes.

    Args:
        xs: The states of each path.
        ts: The times of paths of numbers.
        title: The title of the axes.
        ax: The matplotlib axes to draw on; by default those of a new figure.

    ```python
    figure = jf.plot.trajectories(np.zeros((3, 5, 2)))
    assert len(figure.axes[0].lines) == 3
    ```
    """
    check_kinds(trajectories, locals())
    xs = _known(xs, np.float64)
    if xs.ndim == 3 and xs.shape[2] == 1:
        xs = xs[..., 0]
    if not (xs.ndim == 2 or (xs.ndim == 3 and xs.shape[2] == 2)) or 0 in xs.shape:
        raise ValueError(f"Paths must have shape (batch, n + 1, 2) or (batch, n + 1). Got {xs.shape}.")
    plane = xs.ndim == 3
    if not plane:
        times = np.arange(xs.shape[1]) if ts is None else _known(ts, np.float64)
        if times.shape != xs.shape[1:]:
            raise ValueError(f"There must be one time for each state. Got {times.shape} for {xs.shape[1]} states.")
        xs = np.stack(np.broadcast_arrays(times[None], xs), axis=-1)
    ax = _axes(ax, (4.0, 4.0) if plane else (5.0, 3.2), title)
    alpha = float(np.clip(30 / len(xs), 0.1, 0.6))
    ax.plot(*xs.T, color=INK, linewidth=0.7, alpha=alpha)
    for x, colour, name in ((xs[:, 0], NOISE, "start"), (xs[:, -1], DATA, "end")):
        ax.scatter(*x.T, s=10, color=colour, linewidths=0, zorder=3, label=name, clip_on=False)
    if plane:
        ax.set_aspect("equal", adjustable="datalim")
    else:
        _label(ax, "step" if ts is None else "t", "x")
    ax.legend(frameon=False, fontsize=8, loc="best", handletextpad=0.2)
    return ax.figure


def density(
    log_density: Callable[[Array], Array],
    particles: Numbers | None = None,
    *,
    extent: tuple[float | int, float | int, float | int, float | int] | None = None,
    resolution: int = 200,
    title: str | None = None,
    ax: PyTree = None,
) -> "matplotlib.figure.Figure":
    """A density in the plane as a heat map, with `particles` `(n, 2)` over it.

    `log_density` takes one point `(2,)` and need not be normalised: the map runs from 0 to its greatest value
    on a grid of `resolution` points a side over `extent`, `(left, right, bottom, top)`, by default the range of
    the particles and a tenth more. Raises `ValueError` without particles and extent, and where the density is
    nowhere positive and finite.

    Args:
        log_density: A function of one point `(2,)`.
        particles: Points `(n, 2)` over the map.
        extent: The part of the plane, `(left, right, bottom, top)`.
        resolution: The points of the grid along a side.
        title: The title of the axes.
        ax: The matplotlib axes to draw on; by default those of a new figure.

    ```python
    figure = jf.plot.density(lambda x: -(x**2).sum(), extent=(-2, 2, -2, 2), resolution=10)
    assert figure.axes[0].get_xlim() == (-2, 2)
    ```
    """
    check_kinds(density, locals())
    check_count(2, resolution=resolution)
    if particles is not None:
        particles = _known(particles, np.float64)
        if particles.ndim != 2 or particles.shape[1] != 2 or len(particles) == 0:
            raise ValueError(f"Particles in the plane must have shape (n, 2). Got {particles.shape}.")
    if extent is None:
        if particles is None:
            raise ValueError(
                "The part of the plane to draw must be known. Got neither particles "
                "nor extent: pass extent=(left, right, bottom, top)."
            )
        extent = _range(particles, 0.1)
    if np.shape(extent) != (4,):
        raise ValueError(f"extent must be (left, right, bottom, top). Got {shown(extent)}.")
    left, right, bottom, top = extent
    grid = np.meshgrid(np.linspace(left, right, resolution), np.linspace(bottom, top, resolution))
    points = np.stack(grid, axis=-1).reshape(-1, 2).astype(np.float32)
    values = np.asarray(jax.lax.map(log_density, points, batch_size=4096), np.float64)
    if values.shape != (len(points),) or not np.isfinite(values).any():
        raise ValueError(
            f"log_density must map one point of shape (2,) to one number, finite somewhere on {extent}. "
            f"Got shape {values.shape[1:]}, {np.isfinite(values).sum()} of {values.size} values finite."
        )
    values = np.exp(values - values[np.isfinite(values)].max()).reshape(resolution, resolution)
    ax = _axes(ax, (4.0, 4.0), title)
    ax.imshow(values, extent=extent, origin="lower", cmap="Blues", vmin=0, vmax=1, interpolation="bilinear")
    if particles is not None:
        alpha = float(np.clip(300 / len(particles), 0.15, 0.8))
        ax.scatter(*particles.T, s=5, color=DATA, linewidths=0, alpha=alpha)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return ax.figure


def loss_curve(
    steps: Numbers,
    losses: Numbers,
    *,
    smooth: float | int = 0.95,
    title: str | None = None,
    ax: PyTree = None,
) -> "matplotlib.figure.Figure":
    """Losses over steps, pale, and over them their running mean.

    The mean is `sum_i smooth^(k - i) loss_i / sum_i smooth^(k - i)` over the finite losses up to `k`, hence
    without the bias of its start; `smooth` 0 leaves it out. Raises `ValueError` where steps and losses are not
    as many, or for `smooth` outside [0, 1).

    Args:
        steps: The steps, shape `(n,)`.
        losses: The losses, shape `(n,)`.
        smooth: The decay of the running mean, in [0, 1).
        title: The title of the axes.
        ax: The matplotlib axes to draw on; by default those of a new figure.

    ```python
    figure = jf.plot.loss_curve(np.arange(3), np.array([3.0, 2.0, 1.0]))
    assert len(figure.axes[0].lines) == 2  # the losses and their running mean
    ```
    """
    check_kinds(loss_curve, locals())
    steps, losses = _known(steps), _known(losses, np.float64)
    if steps.ndim != 1 or steps.shape != losses.shape or len(steps) == 0:
        raise ValueError(f"There must be one loss for each step. Got {losses.shape} for {steps.shape}.")
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth must be at least 0 and below 1. Got {smooth}.")
    ax = _axes(ax, (5.0, 3.2), title)
    ax.plot(steps, losses, color=NOISE, linewidth=0.8, alpha=0.3 if smooth else 1.0)
    if smooth:
        finite = np.isfinite(losses)
        total, weight = (
            np.fromiter(it.accumulate(terms, lambda mean, term: smooth * mean + term), np.float64)
            for terms in (np.where(finite, losses, 0), finite.astype(np.float64))
        )
        ax.plot(steps, np.divide(total, weight, where=weight > 0, out=np.full_like(total, np.nan)), color=NOISE)
    _label(ax, "step", "loss")
    return ax.figure


def animation(
    frames: Numbers, path: str | os.PathLike[str], *, fps: int = 20, ncols: int | None = None
) -> pathlib.Path:
    """Noise becoming data, written to `path` as a GIF that repeats and rests on its last frame.

    `frames` are states along generation: images `(n, batch, H, W, C)` in [-1, 1], laid out as by `image_grid`,
    or points `(n, batch, 2)`. The file appears whole or not at all. Returns its path. Raises `ValueError` for
    another shape, images that are not finite, a path that does not end in `.gif`, or `fps` outside 1..50.

    Args:
        frames: The states along generation.
        path: The file, which ends in `.gif`.
        fps: Frames a second, 1 to 50.
        ncols: The number of columns of images; by default the rows and columns form a square.

    ```python
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert jf.plot.animation(np.zeros((3, 4, 2)), f"{folder}/still.gif").exists()
    ```
    """
    check_kinds(animation, locals())
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"An animation must be written as a GIF, to a path that ends in .gif. Got {path.name}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"An animation must be written into a folder that is there. Got {path.parent}: make it."
        )
    if not 1 <= fps <= 50:
        raise ValueError(f"A GIF must have 1 to 50 frames a second. Got fps={fps}.")
    frames = _known(frames)
    if frames.ndim == 3 and frames.shape[2] == 2 and frames.size > 0:
        pictures = _point_frames(frames)
    else:
        pictures = _image_frames(_images(frames, 5, "(n, batch, H, W, C), points (n, batch, 2)"), ncols)
    milliseconds = round(1000 / fps)
    rest = [*[milliseconds] * (len(pictures) - 1), milliseconds + 1500]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".animation-") as scratch:
        written = pathlib.Path(scratch) / path.name
        pictures[0].save(written, save_all=True, append_images=pictures[1:], duration=rest, loop=0)
        os.replace(written, path)
    return path


def _image_frames(frames: np.ndarray, ncols: int | None) -> list[Any]:
    with from_extra("An animation"):
        from PIL import Image

    _, batch, height, _, channels = frames.shape
    ncols, factor = _columns(batch, ncols), max(1, round(48 / height))
    sheets = (_sheet(images, ncols, _gap(height), 0) for images in frames)
    larger = (sheet.repeat(factor, axis=0).repeat(factor, axis=1) for sheet in sheets)
    return [Image.fromarray(sheet[..., 0] if channels == 1 else sheet) for sheet in larger]


def _point_frames(frames: np.ndarray) -> list[Any]:
    with from_extra("An animation"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import to_rgb
        from PIL import Image

    ax = _axes(None, (3.2, 3.2), None)
    canvas = FigureCanvasAgg(ax.figure)
    left, right, bottom, top = _range(frames.reshape(-1, 2), 0.05)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    dots = ax.scatter(*frames[0].T, s=4, linewidths=0, alpha=float(np.clip(500 / len(frames[0]), 0.2, 0.8)))
    pictures = []
    for points, share in zip(frames, np.linspace(0, 1, len(frames)), strict=True):
        dots.set_offsets(points)
        dots.set_color((1 - share) * np.array(to_rgb(NOISE)) + share * np.array(to_rgb(DATA)))
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return pictures


def _axes(ax: Any, size: tuple[float, float], title: str | None) -> Any:
    """`ax`, or the axes of a new figure of `size` inches."""
    if ax is None:
        with from_extra("A picture"):
            from matplotlib.figure import Figure

        ax = Figure(figsize=size, dpi=150, layout="constrained").subplots()
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be the axes of a figure of matplotlib. Got {shown(ax)}.")
    ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
    for side in ax.spines.values():
        side.set(color=INK, linewidth=0.6)
    if title is not None:
        ax.set_title(title, fontsize=10, color=INK)
    return ax


def _label(ax: Any, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.spines[["top", "right"]].set_visible(False)


def _range(points: np.ndarray, margin: float) -> tuple[float, float, float, float]:
    """The square around the finite ones of `points`, wider by `margin`, as `(left, right, bottom, top)`."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        raise ValueError("Some of the points must be finite. Got none.")
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, max((high - low).max() / 2 * (1 + margin), 1e-6)
    return (*(centre[0] + half * np.array([-1, 1])), *(centre[1] + half * np.array([-1, 1])))


def _known(values: Any, dtype: Any = None) -> np.ndarray:
    """Values as a numpy array; raises `ValueError` for traced ones."""
    if isinstance(values, jax.core.Tracer):
        raise ValueError(f"A picture must be of known values. Got {values}: draw it outside of jax.jit.")
    if not is_real(values):
        raise TypeError(f"A picture must be of real numbers. Got {shown(values)}.")
    return np.asarray(values, dtype)


def _images(images: Numbers, ndim: int, shape: str) -> np.ndarray:
    """Images as bytes."""
    images = _known(images)
    if images.ndim != ndim or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(
            f"Images must have shape {shape}, with 1 or 3 channels. Got {images.shape}; "
            "a missing channel axis is added by images[..., None]."
        )
    if not np.isfinite(images).all():
        raise ValueError(
            f"Images must be finite. Got {(~np.isfinite(images)).sum()} of {images.size} values that are not."
        )
    if images.dtype == np.uint8:
        return images
    return np.round((np.clip(images.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def _columns(n: int, ncols: int | None) -> int:
    ncols = math.ceil(math.sqrt(n)) if ncols is None else ncols
    if ncols < 1:
        raise ValueError(f"There must be at least one column. Got ncols={ncols}.")
    return min(n, ncols)


def _gap(height: int) -> int:
    return max(1, round(0.08 * height))


def _sheet(images: np.ndarray, ncols: int, gap: int, top: int) -> np.ndarray:
    """All images, as bytes, on one white sheet, `gap` pixels apart, with `top` free pixels above each."""
    n, height, width, _ = images.shape
    rows = -(-n // ncols)
    cells = np.full((rows * ncols, gap + top + height, width + gap, 3), 255, np.uint8)
    cells[:n, gap + top :, :width] = images
    cells = cells.reshape(rows, ncols, *cells.shape[1:])
    sheet = cells.transpose(0, 2, 1, 3, 4).reshape(rows * cells.shape[2], ncols * cells.shape[3], 3)
    return np.pad(sheet, ((0, gap), (gap, 0), (0, 0)), constant_values=255)
