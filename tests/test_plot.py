"""Pictures: what they show, what they leave alone, and bad input."""

import os

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from jflow import plot

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (7, 8, 8, 1))
PATHS = RNG.standard_normal((5, 11, 2))
TIMES = np.linspace(0, 1, 11)


def log_density(x):
    return -0.5 * jnp.sum((x - jnp.array([1.0, -2.0])) ** 2)


DRAWINGS = {
    "image_grid": lambda **kw: plot.image_grid(IMAGES, np.arange(7), **kw),
    "trajectories": lambda **kw: plot.trajectories(PATHS, **kw),
    "numbers": lambda **kw: plot.trajectories(PATHS[..., 0], TIMES, **kw),
    "density": lambda **kw: plot.density(log_density, PATHS[0], resolution=20, **kw),
    "loss_curve": lambda **kw: plot.loss_curve(np.arange(50), RNG.random(50), **kw),
}
each = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)


@each
def test_a_new_figure_and_nothing_else(draw, tmp_path):
    import matplotlib.pyplot as plt

    before, settings = plt.get_fignums(), dict(mpl.rcParams)
    figure = draw(title="A title")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure.axes[0].get_title() == "A title" and draw().axes[0].get_title() == ""
    figure.savefig(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) > 150 and len(set(picture.convert("L").tobytes())) > 10
    assert plt.get_fignums() == before and dict(mpl.rcParams) == settings


@each
def test_into_given_axes(draw):
    figure = matplotlib.figure.Figure()
    left, right = figure.subplots(1, 2)
    assert draw(ax=right) is figure
    assert right.has_data() and not left.has_data() and len(figure.axes) == 2


def test_image_grid_lays_images_out():
    images = np.full((5, 10, 6, 3), -1.0)
    images[0, 0, 0] = [1, 0, -1]
    images[4, -1, -1] = 7  # cut to 1
    sheet = plot.image_grid(images, ncols=2).axes[0].images[0].get_array()
    assert sheet.shape == (3 * 11 + 1, 2 * 7 + 1, 3)
    assert (sheet[[0, 11, 22, 33]] == 255).all() and (sheet[:, [0, 7, 14]] == 255).all()
    assert sheet[1, 1].tolist() == [255, 128, 0] and sheet[1, 2].tolist() == [0, 0, 0]
    assert sheet[32, 6].tolist() == [255, 255, 255] and sheet[32, 5].tolist() == [0, 0, 0]
    assert (sheet[23:, 8:] == 255).all()  # the sixth cell is empty
    assert plot.image_grid(images).axes[0].images[0].get_array().shape == (2 * 11 + 1, 3 * 7 + 1, 3)


def test_image_grid_writes_labels_above_their_images():
    ax = plot.image_grid(IMAGES, list("abcdefg"), ncols=3).axes[0]
    assert [text.get_text() for text in ax.texts] == list("abcdefg")
    sheet = ax.images[0].get_array()
    for text, image in zip(ax.texts, IMAGES, strict=True):
        x, y = text.get_position()
        first = sheet[int(y + 0.5), round(x - 3.5)]  # the pixel under the text's lower left
        np.testing.assert_array_equal(first, round((image[0, 0, 0] + 1) * 127.5))
        assert (sheet[int(y - 0.5), round(x)] == 255).all()


def test_trajectories_start_and_end():
    for ax in (plot.trajectories(PATHS).axes[0], plot.trajectories(jnp.asarray(PATHS[..., :1]), TIMES).axes[0]):
        start, end = ax.collections
        assert len(ax.lines) == 5
        for line, a, b in zip(ax.lines, start.get_offsets(), end.get_offsets(), strict=True):
            np.testing.assert_allclose(line.get_xydata()[[0, -1]], [a, b])
    np.testing.assert_allclose(ax.lines[2].get_xydata(), np.stack([TIMES, PATHS[2, :, 0]], axis=1), rtol=1e-6)
    assert ax.get_xlabel() == "t"
    assert plot.trajectories(PATHS[..., 0]).axes[0].get_xlabel() == "step"


def test_density_has_its_peak_where_it_is():
    picture = plot.density(log_density, extent=(-1, 3, -3, 1), resolution=41).axes[0].images[0]
    values = np.asarray(picture.get_array())
    assert np.unravel_index(values.argmax(), values.shape) == (10, 20) and values.max() == 1
    np.testing.assert_allclose(values[10, 30], np.exp(-0.5), rtol=1e-5)
    assert list(picture.get_extent()) == [-1, 3, -3, 1]
    shifted = plot.density(lambda x: log_density(x) + 500, extent=(-1, 3, -3, 1), resolution=41)
    np.testing.assert_allclose(shifted.axes[0].images[0].get_array(), values, rtol=1e-3)


def test_density_over_the_range_of_the_particles():
    ax = plot.density(log_density, np.array([[0.0, 0.0], [4.0, 2.0]]), resolution=10).axes[0]
    np.testing.assert_allclose((*ax.get_xlim(), *ax.get_ylim()), (-0.2, 4.2, -1.2, 3.2))
    assert len(ax.collections[0].get_offsets()) == 2


def test_loss_curve_is_smoothed_without_bias():
    steps, losses = np.arange(1, 6), np.array([4.0, 4.0, np.nan, 4.0, 8.0])
    raw, mean = plot.loss_curve(steps, losses, smooth=0.5).axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    weights = 0.5 ** np.array([4, 3, 1, 0])
    np.testing.assert_allclose(mean.get_ydata(), [4, 4, 4, 4, weights @ [4, 4, 4, 8] / weights.sum()])
    assert len(plot.loss_curve(steps, losses, smooth=0).axes[0].lines) == 1
    _, mean = plot.loss_curve(steps[:2], np.array([np.inf, 3.0])).axes[0].lines
    np.testing.assert_array_equal(mean.get_ydata(), [np.nan, 3])


@pytest.mark.parametrize("frames", [RNG.uniform(-1, 1, (4, 6, 8, 8, 3)), PATHS.transpose(1, 0, 2)[:4]])
def test_animation(tmp_path, frames):
    path = plot.animation(frames, tmp_path / "noise.gif", fps=10)
    assert os.listdir(tmp_path) == ["noise.gif"]
    with Image.open(path) as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        durations = []
        for i in range(4):
            gif.seek(i)
            durations.append(gif.info["duration"])
        assert durations == [100, 100, 100, 1600]


def test_animation_shows_the_frames(tmp_path):
    frames = np.stack([np.full((4, 8, 8, 1), value) for value in (-1.0, 0.0, 1.0)])
    with Image.open(plot.animation(frames, tmp_path / "grey.gif", ncols=4)) as gif:
        assert gif.size == (6 * (4 * 9 + 1), 6 * (8 + 2))  # eight pixels enlarged to 48
        for i, value in enumerate((0, 128, 255)):
            gif.seek(i)
            assert abs(gif.convert("L").getpixel((20, 20)) - value) <= 1


def test_a_failed_animation_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "noise.gif"
    path.write_text("old")

    def save(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="disk full"):
        plot.animation(IMAGES[None], path)
    assert os.listdir(tmp_path) == ["noise.gif"] and path.read_text() == "old"


NAN = np.where(np.arange(7)[:, None, None, None] == 2, np.nan, IMAGES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plot.image_grid(IMAGES[..., 0]), r"\(n, H, W, C\), with 1 or 3 channels. Got \(7, 8, 8\)"),
        (lambda path: plot.image_grid(np.zeros((2, 8, 8, 4))), "1 or 3 channels"),
        (lambda path: plot.image_grid(IMAGES[:0]), r"Got \(0, 8, 8, 1\)"),
        (lambda path: plot.image_grid(NAN), "64 of 448 values that are not"),
        (lambda path: plot.image_grid(IMAGES, [1, 2]), "Got 2 for 7 images"),
        (lambda path: plot.image_grid(IMAGES, ncols=0), "Got ncols=0"),
        (lambda path: plot.trajectories(np.zeros((5, 11, 3))), r"Got \(5, 11, 3\)"),
        (lambda path: plot.trajectories(np.zeros((0, 11))), r"Got \(0, 11\)"),
        (lambda path: plot.trajectories(PATHS[..., 0], TIMES[1:]), "one time for each state"),
        (lambda path: plot.density(log_density), "pass extent="),
        (lambda path: plot.density(log_density, np.zeros(3)), r"shape \(n, 2\). Got \(3,\)"),
        (lambda path: plot.density(log_density, np.full((3, 2), np.nan)), "Some of the points must be finite"),
        (lambda path: plot.density(lambda x: x, extent=(0, 1, 0, 1), resolution=5), r"Got shape \(2,\)"),
        (lambda path: plot.density(lambda x: -jnp.inf, extent=(0, 1, 0, 1), resolution=5), "0 of 25 values finite"),
        (lambda path: plot.loss_curve(np.arange(3), np.zeros(4)), "one loss for each step"),
        (lambda path: plot.loss_curve(np.arange(3), np.zeros(3), smooth=1), "below 1. Got 1"),
        (lambda path: plot.animation(IMAGES[None], path / "noise.mp4"), "ends in .gif. Got noise.mp4"),
        (lambda path: plot.animation(IMAGES[None], path / "noise.gif", fps=0), "Got fps=0"),
        (lambda path: plot.animation(IMAGES, path / "noise.gif"), r"points \(n, batch, 2\)"),
        (lambda path: plot.animation(NAN[None], path / "noise.gif"), "Images must be finite"),
    ],
)
def test_bad_input(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert os.listdir(tmp_path) == []
