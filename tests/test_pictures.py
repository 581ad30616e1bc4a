"""Folders and files of pictures, what is wrong with them, augmentations, and the recipe that trains on them."""

import gzip
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from drawings import draw_folder
from PIL import Image
from test_cli import message_of

from jflow import data
from jflow.cli import main
from jflow.data import _augment, _binary, _folder
from jflow.recipes import Images, images

# --- folders


def save(path: Path, pixels, **options) -> Path:
    """Writes a picture of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def plain(colour, height=20, width=30):
    return np.broadcast_to(np.asarray(colour, np.uint8), (height, width, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "gif", "webp", "tif", "ppm"])
def test_every_format_gives_its_colour(suffix, tmp_path):
    save(tmp_path / f"a.{suffix}", plain((200, 60, 120)))
    made = data.from_folder(tmp_path, 8)
    assert made.x.shape == (1, 8, 8, 3) and made.label is None and made.name == tmp_path.name
    assert np.abs(made.x[0].astype(int) - (200, 60, 120)).max() <= 6  # JPEG rounds in other units


def test_modes_of_pictures(tmp_path):
    """Grey, 16 bits, a palette, transparency: each comes out as the colour that a viewer shows."""
    save(tmp_path / "a-grey.png", np.full((9, 9), 70))
    Image.fromarray(np.full((9, 9), 70 * 257, np.uint16)).save(tmp_path / "b-deep.png")
    Image.new("RGB", (9, 9), (10, 200, 30)).quantize(4).save(tmp_path / "c-palette.png")
    Image.new("RGBA", (9, 9), (10, 200, 30, 0)).save(tmp_path / "d-clear.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 51)).save(tmp_path / "e-smoke.png")
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "f-print.tif")
    colours = data.from_folder(tmp_path, 4).x[:, 0, 0]
    np.testing.assert_allclose(colours, [[70] * 3, [70] * 3, [10, 200, 30], [255] * 3, [204] * 3, [255, 0, 0]], atol=2)
    grey = data.from_folder(tmp_path, 4, grey=True)
    assert grey.x.shape == (6, 4, 4, 1)
    red, green, blue = 10, 200, 30
    assert abs(int(grey.x[2, 0, 0, 0]) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 2


def test_a_picture_is_cut_at_its_centre_and_turned_upright(tmp_path):
    thirds = np.concatenate([plain(c, 10, 10) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))], axis=1)
    save(tmp_path / "wide.png", thirds)
    save(tmp_path / "tall.png", thirds.transpose(1, 0, 2))
    assert (data.from_folder(tmp_path, 5).x == (0, 255, 0)).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    halves = np.concatenate([plain((0, 0, 0), 16, 8), plain((255, 255, 255), 16, 8)], axis=1)
    save(tmp_path / "turned" / "a.png", halves, exif=exif)
    turned = data.from_folder(tmp_path / "turned", 8).x[0, ..., 0]
    assert (turned[:3] < 30).all() and (turned[-3:] > 225).all()


def test_pictures_are_resized_without_aliasing(tmp_path):
    """A pattern finer than the result becomes its mean; every second pixel of it would be white."""
    fine = 255 * (np.indices((64, 64)).sum(0) % 2)
    save(tmp_path / "fine.png", fine)
    assert np.abs(data.from_folder(tmp_path, 8, grey=True).x.astype(float) - 127.5).max() < 8


def test_a_large_jpeg_is_the_png_of_the_same_picture(tmp_path, monkeypatch):
    """A photograph of 640 x 480, turned by its EXIF, decoded at an eighth, a quarter, a half and whole."""
    i, j = np.mgrid[:480, :640] / 640
    pixels = 127 + 60 * np.stack([np.sin(9 * i + 4 * j), np.cos(7 * j), np.sin(5 * i * j)], axis=-1)
    picture, exif = Image.fromarray(pixels.astype(np.uint8)), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for suffix in ("png", "jpg"):
        (tmp_path / suffix).mkdir()
        picture.save(tmp_path / suffix / f"a.{suffix}", exif=exif, quality=95)
    decoded, fitted = [], _folder._fitted
    monkeypatch.setattr(_folder, "_fitted", lambda image, *rest: decoded.append(image.size) or fitted(image, *rest))
    for size in (30, 60, 120, 240):
        for grey in (False, True):
            png, jpg = (data.from_folder(tmp_path / s, size, grey=grey).x.astype(int) for s in ("png", "jpg"))
            assert np.abs(png - jpg).max() <= 6 and np.abs(png - jpg).mean() < 1
    assert [shape for shape in decoded if shape != (480, 640)] == [(60, 80)] * 2 + [(120, 160)] * 2 + [(240, 320)] * 2


def test_sub_folders_are_classes(tmp_path):
    for name in ("b", "a", "a/deep"):
        save(tmp_path / name / "1.png", plain(len(name)))
    save(tmp_path / ".hidden" / "1.png", plain(0))
    save(tmp_path / "a" / ".1.png", plain(0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    for junk in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "notes/words.txt", "words.txt"):
        (tmp_path / junk).write_bytes(b"\0\1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = data.from_folder(tmp_path, 4)
    assert made.classes == ("a", "b") and made.label.tolist() == [0, 0, 1] and made.num_classes == 2
    assert made.x[:, 0, 0, 0].tolist() == [1, 6, 1]
    bare = data.from_folder(tmp_path, 4, labels=False)
    assert bare.label is None and len(bare) == 3
    assert data.from_folder(tmp_path / "b", 4).label is None


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    for name in ("a", "b", "c", "d", "e", "f"):
        save(tmp_path / f"{name}.jpg", noise)
    save(tmp_path / "g.png", noise)
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.jpg").write_text("no picture")
    chunk = bytearray((tmp_path / "g.png").read_bytes())
    chunk[len(chunk) // 2] ^= 255
    (tmp_path / "g.png").write_bytes(chunk)
    found = _folder.list_pictures

    def listed(*args):
        answer = found(*args)
        (tmp_path / "e.jpg").unlink()
        return answer

    monkeypatch.setattr(_folder, "list_pictures", listed)
    with pytest.warns(UserWarning, match=r"^5 of 7 pictures of .* cannot be read and are left out: b.jpg \(") as seen:
        made = data.from_folder(tmp_path, 8)
    assert len(seen) == 1 and len(made) == 2 and (made.x[0] == made.x[1]).all()
    assert all(f"{name} (" in str(seen[0].message) for name in ("c.jpg", "d.jpg", "e.jpg", "g.png"))


def test_folders_that_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be in a folder. Got .*none, which does not exist"):
        data.from_folder(tmp_path / "none", 8)
    with pytest.raises(ValueError, match=r"must have pictures of a format that pillow reads.*which has none"):
        data.from_folder(tmp_path, 8)
    save(tmp_path / "b" / "1.png", plain(0))
    with pytest.raises(FileNotFoundError, match="which is a file"):
        data.from_folder(tmp_path / "b" / "1.png", 8)
    with pytest.raises(ValueError, match=r"must be two sub-folders or more.*has 1 with pictures"):
        data.from_folder(tmp_path, 8, labels=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 2"), pytest.raises(ValueError, match=r"Got none in a of"):
        data.from_folder(tmp_path, 8)
    with pytest.raises(ValueError, match=r"which has none: 1.png \("):
        data.from_folder(tmp_path / "a", 8)
    save(tmp_path / "1.png", plain(0))
    with pytest.raises(ValueError, match=r"has 1 beside 2 sub-folders with pictures, the first 1.png"):
        data.from_folder(tmp_path, 8)
    with pytest.raises(ValueError, match=r"Half of the memory must hold the pictures.*jflow.data.loader"):
        data.from_folder(tmp_path, 10**6, labels=False)
    with pytest.raises(ValueError, match="size must be an integer of at least 1"):
        data.from_folder(tmp_path, 0)


def test_batches_of_bytes_are_scaled_and_a_function_of_seed_and_step(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", plain(50 * i))
    made = data.from_folder(tmp_path, 4)
    assert made.x.dtype == np.uint8 and not made.x.flags.writeable
    rows = [row for step in range(5) for row in data.batch(made, 3, step, 2)["x"]]
    assert rows[0].dtype == np.float32
    for epoch in (rows[:5], rows[5:]):
        np.testing.assert_allclose(sorted(row[0, 0, 0] for row in epoch), np.arange(0, 250, 50) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(data.batch(made, 3, 4, 2)["x"], rows[8:])
    with pytest.raises(ValueError, match="Each class must have one name"):
        data.Dataset(made.x, np.zeros(5, int), "mine", 1, ("a", "b"))


# --- augmentations


def test_flip_is_a_fair_coin_an_example():
    x = np.random.default_rng(0).random((4, 6, 3)).astype(np.float32)
    keys = jr.split(jr.key(1), 1000)
    flipped = np.asarray(jax.jit(jax.vmap(data.flip, (0, None)))(keys, jnp.asarray(x)))
    mirrored = (flipped == x[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == x).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert (data.flip(keys[7], jnp.asarray(x)) == flipped[7]).all()


def test_crop_is_uniform_over_its_shifts():
    x = jnp.arange(25.0).reshape(5, 5, 1)
    moved = np.asarray(jax.jit(jax.vmap(lambda key: data.crop(key, x, 1)))(jr.split(jr.key(2), 1800)))
    wide = np.pad(np.asarray(x), ((1, 1), (1, 1), (0, 0)), mode="edge")
    counts = [int((moved == wide[i : i + 5, j : j + 5]).all((1, 2, 3)).sum()) for i in range(3) for j in range(3)]
    assert sum(counts) == 1800 and np.abs(np.array(counts) - 200).max() < 4 * np.sqrt(200)
    assert (data.crop(jr.key(0), x, 0) == x).all()
    for function in (data.flip, lambda key, x: data.crop(key, x, 1)):
        with pytest.raises(ValueError, match=r"must have shape \(H, W, C\). Got \(2, 5, 5, 1\); a batch goes through"):
            function(jr.key(0), jnp.zeros((2, 5, 5, 1)))


def test_the_numbers_of_augment_have_their_law():
    keys, p = jr.split(jr.key(3), 20_000), 0.3
    x = jnp.asarray(np.random.default_rng(0).random((4, 6, 1)), jnp.float32)
    draw = jax.jit(jax.vmap(lambda key, p: data.augment(key, x, p)[1], (0, None)), static_argnums=1)
    a = np.asarray(draw(keys, p), np.float64)

    def about(found, value, std):
        assert abs(found.mean() - value) < 4.5 * std / np.sqrt(len(found))

    def normal(found):
        about(found, 0, 1)
        about(found**2, 1, np.sqrt(2))

    about(a[:, 0], 0.5, 0.5)
    about(a[:, 1], p / 2, 0.5)
    drawn = [a[:, 2] != 0, a[:, 4] != 0, a[:, 5] != 0, a[:, 7] != 0]
    for where in drawn:
        about(where, p, 0.5)
    about(drawn[0] & drawn[1] & drawn[2], p**3, 0.2)  # independent of each other
    normal(a[drawn[0], 2])
    about(a[drawn[1], 3], -1, np.sqrt(0.5))
    np.testing.assert_allclose((a[:, 3] + 1) ** 2 + a[:, 4] ** 2, 1, atol=1e-6)
    stretch, turned = np.hypot(a[drawn[2], 5], a[drawn[2], 6]), a[drawn[2], 6] != 0
    about(stretch**2, 1, np.sqrt(2))
    about(turned, 0.5, 0.5)
    normal(a[drawn[3], 7])
    normal(a[drawn[3], 8])
    about(a[drawn[3], 7] * a[drawn[3], 8], 0, 1)


@pytest.mark.slow
def test_augment_leaves_an_image_whose_numbers_are_zeros():
    x = jnp.asarray(np.random.default_rng(0).random((8, 6, 3)), jnp.float32)
    keys = jr.split(jr.key(4), 400)
    alone = jax.jit(data.augment)
    moved, a = map(np.asarray, jax.jit(jax.vmap(data.augment, (0, None)))(keys, x))
    for key, image, label in zip(keys[:9], moved, a, strict=False):  # a function of its key alone
        one, own = alone(key, x)
        np.testing.assert_allclose(one, image, atol=1e-5)
        np.testing.assert_allclose(own, label, atol=1e-6)
    still = (a[:, 2:] == 0).all(1)
    assert 100 < still.sum() < 350
    for image, label in zip(moved[still], a[still], strict=True):
        plain = np.asarray(x)[:: -1 if label[1] else 1, :: -1 if label[0] else 1]
        assert (image == plain).all()
    assert all(np.abs(image - np.asarray(x)).max() > 1e-3 for image in moved[~still])
    with pytest.raises(ValueError, match=r"p must be a probability, from 0 to 1. Got 1.5"):
        data.augment(jr.key(0), x, 1.5)
    with pytest.raises(ValueError, match=r"must have shape \(H, W, C\)"):
        data.augment(jr.key(0), x[None])


@pytest.mark.parametrize(
    ("a2", "a3", "a4", "a5", "a6", "a7"),
    [
        (0, 0, 0, 0, 0, 0),
        (1.2, 0, 0, 0, 0, 0),
        (0, 1.0, 0, 0, 0, 0),
        (0, 0, 0, 1.5, 0, 0),
        (0, 0, 0.7, 1.5, 0, 0),
        (0, 0, 0, 0, 1.1, -0.6),
        (-0.7, -2.0, 2.1, -1.0, 0.5, 0.8),
    ],
)
def test_augment_moves_a_smooth_image_as_its_numbers_say(a2, a3, a4, a5, a6, a7):
    """A bump is at the place, and has the shape, that the matrices of the transformation give to it."""
    height, width, spread = 40, 48, 3.0

    def counter_clockwise(angle):  # rows count downwards
        return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    stretch = counter_clockwise(a4) @ np.diag([2 ** (0.2 * a5), 2 ** (-0.2 * a5)]) @ counter_clockwise(-a4)
    forward = stretch @ counter_clockwise(a3) * 2 ** (0.2 * a2)
    shift, bump = np.array([a6 * width, a7 * height]) / 8, np.array([5.0, -3.0])
    row, column = np.mgrid[:height, :width]
    places = np.stack([column - (width - 1) / 2, row - (height - 1) / 2], axis=-1)

    def density(places):
        return np.exp(-((places - bump) ** 2).sum(-1) / (2 * spread**2))

    x = np.stack([density(places), -density(places)], axis=-1)
    given = [jnp.float32(a) for a in (a2, a3, a4, a5)]
    moved = _augment._warped(jnp.asarray(x, jnp.float32), *given, jnp.array([a6, a7], jnp.float32))
    before = (places - shift) @ np.linalg.inv(forward).T
    inside = (np.abs(before) < np.array([width, height]) / 2).all(-1)  # elsewhere is the mirror image
    wanted = density(before)[inside]
    assert wanted.max() > 0.9 and inside.mean() > 0.5
    np.testing.assert_allclose(moved[inside], np.stack([wanted, -wanted], axis=-1), atol=0.02)


def test_augment_turns_counter_clockwise_and_mirrors_beyond_the_edge():
    smooth = np.asarray(jax.image.resize(jr.normal(jr.key(0), (4, 4, 1)), (32, 32, 1), "cubic"))
    zero, none = jnp.float32(0), jnp.zeros(2)
    turned = _augment._warped(jnp.asarray(smooth), zero, jnp.float32(np.pi / 2), zero, zero, none)
    np.testing.assert_allclose(turned[3:-3, 3:-3], np.rot90(smooth)[3:-3, 3:-3], atol=0.03)
    right = _augment._warped(jnp.asarray(smooth), zero, zero, zero, zero, jnp.array([2.0, 0.0]))  # by 8 pixels
    np.testing.assert_allclose(right[:, 8:], smooth[:, :-8], atol=0.05)
    np.testing.assert_allclose(right[:, 1:7], smooth[:, 1:7][:, ::-1], atol=0.05)


# --- binary files


def idx(array) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


PIXELS, LABELS = np.arange(7 * 28 * 28).reshape(7, 28, 28) % 251, np.arange(7)


def fill(folder: Path, squeeze=lambda content: content, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(squeeze(idx(PIXELS)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(squeeze(idx(LABELS)))
    return folder


def test_fashion_mnist_is_found_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(_binary, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("JFLOW_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match=r"Got no train-images-idx3-ubyte in .*fashion-mnist or .*debian"):
        data.fashion_mnist()
    fill(tmp_path / "debian", gzip.compress, ".gz")
    made = data.fashion_mnist("all")
    assert made.x.dtype == np.uint8 and len(made) == 14 and made.classes[9] == "ankle boot" and made.num_classes == 10
    np.testing.assert_array_equal(made.x[7:, ..., 0], PIXELS)
    np.testing.assert_array_equal(made.label[:7], LABELS)
    (fill(tmp_path / "mine" / "fashion-mnist") / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[::-1]))
    assert data.fashion_mnist("test").label.tolist() == LABELS[::-1].tolist()
    assert data.fashion_mnist("test", tmp_path / "debian").label.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must begin with 0 0 8 3"),
        (idx(PIXELS)[:-1], "must hold what its header says"),
        (idx(PIXELS) + b"\0", "must hold what its header says"),
        (idx(LABELS), "must begin with 0 0 8 3. Got .* begins with 0 0 8 1"),
        (b"\0\0\x0d\3" + idx(PIXELS)[4:], "begins with 0 0 13 3"),
        (idx(PIXELS)[:9], "must begin with"),
    ],
)
def test_idx_files_that_raise(content, says, tmp_path):
    file = tmp_path / "mine-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        data.from_idx(file)
    squeezed = gzip.compress(idx(PIXELS))
    file.with_suffix(".gz").write_bytes(squeezed[: len(squeezed) // 2])
    with pytest.raises(ValueError, match="must unpack"):
        data.from_idx(file.with_suffix(".gz"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.from_idx(tmp_path / "none")


def test_idx_files_of_your_own(tmp_path):
    (tmp_path / "images").write_bytes(idx(PIXELS))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    made = data.from_idx(tmp_path / "images", tmp_path / "labels")
    assert made.num_classes == 7 and made.x.shape == (7, 28, 28, 1) and made[1]["label"] == 1
    (tmp_path / "labels").write_bytes(idx(LABELS[:5]))
    with pytest.raises(ValueError, match=r"one label for each example: shape \(7,\). Got \(5,\)"):
        data.from_idx(tmp_path / "images", tmp_path / "labels")


def test_cifar10_is_read_by_planes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 256, (6, 32, 32, 3)), np.array([3, 9, 0, 1, 2, 4])
    rows = [
        np.concatenate([[c], image.transpose(2, 0, 1).ravel()]).astype(np.uint8)
        for c, image in zip(label, x, strict=True)
    ]
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(rows[i].tobytes())
    with pytest.raises(FileNotFoundError, match=r"Got .*test_batch.bin: No such file"):
        data.cifar10("test", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(rows[5].tobytes())
    made = data.cifar10("all", tmp_path)
    np.testing.assert_array_equal(made.x, x)
    assert made.label.tolist() == label.tolist() and made.classes[3] == "cat"
    assert [len(part) for part in images.read(tmp_path, 16, True)] == [5, 1]
    for content, says in (
        (rows[5].tobytes()[:-1], "must have 3073 bytes"),
        (b"\x0a" + rows[5].tobytes()[1:], "Got 10"),
    ):
        (tmp_path / "test_batch.bin").write_bytes(content)
        with pytest.raises(ValueError, match=says):
            data.cifar10("test", tmp_path)


# --- the recipe and the command line


@pytest.fixture
def drawings(tmp_path):
    return draw_folder(tmp_path / "drawings", 30)


@pytest.fixture(autouse=True)
def read_anew():
    images._data.cache_clear()


SMALL = ["--size", "8", "--steps", "4", "--batch-size", "4"]
DIT = ["--net", "dit", "--dim", "8", "--depth", "1"]


def test_the_recipe_takes_what_its_folder_holds(drawings):
    recipe = Images(str(drawings), size=8)
    assert recipe.num_classes == 2 and recipe.shape == (8, 8, 3)
    train, test = recipe._open()
    assert (len(train), len(test)) == (28, 2) and sorted(test.label) == [0, 1] and train.classes == ("houses", "trees")
    together = np.concatenate([train.x, test.x])
    whole = data.from_folder(drawings, 8).x
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in whole)
    assert recipe.batch(5)["x"].shape == (64, 8, 8, 3) and (recipe.batch(5)["x"] == recipe.batch(5)["x"]).all()
    bare = Images(str(drawings / "trees"), size=8, grey=True)
    assert bare.num_classes is None and bare.shape == (8, 8, 1) and "label" not in bare.batch(0)
    assert [len(part) for part in bare._open()] == [14, 1]


def test_the_recipe_takes_arrays_of_images(tmp_path, monkeypatch):
    x, label = np.random.default_rng(0).random((12, 10, 14, 3)).astype(np.float32) * 2 - 1, np.arange(12) % 3
    np.savez(tmp_path / "mine.npz", x=x, label=label)
    recipe = Images(str(tmp_path / "mine.npz"), size=10)
    assert recipe.num_classes == 3
    kept = sorted(image.tobytes() for part in recipe._open() for image in part.x)
    assert kept == sorted(image.tobytes() for image in np.rint((x[:, :, 2:12] + 1) * 127.5).astype(np.uint8))
    for wrong, low in (
        (3 * x, "-3"),
        ((x + 1) / 2, "[0-9]"),
    ):  # too large; and in [0, 1], which would be taken as bright
        np.savez(tmp_path / "mine.npz", x=wrong)
        images._data.cache_clear()
        with pytest.raises(ValueError, match=rf"in \[-1, 1\]. Got x of shape \(12, 10, 14, 3\) and values {low}"):
            Images(str(tmp_path / "mine.npz"), size=10)
    fashion = Images(str(fill(tmp_path / "fashion")), size=16, grey=True)
    assert fashion.num_classes == 10 and fashion.batch(0)["x"].shape == (64, 16, 16, 1)
    assert [len(part) for part in fashion._open()] == [7, 7]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "none"], "Pictures must be in a folder. Got"),
        (["--data", "drawings/trees", "--classes", "2"], "must have the classes of the run, here 2. Got"),
        (["--data", "drawings", "--classes", "3"], "which has 2 classes: a class is a sub-folder"),
        (["--data", "drawings", "--size", "9"], "size must be a multiple of patch. Got size=9 and patch=2"),
        (["--data", "drawings", "--size", "10"], "5 x 5"),
        (["--data", "drawings", "--net", "dit", "--dim", "6"], "6"),
        (["--data", "drawings", "--patch", "0"], "patch must be at least 1. Got 0"),
        (["--data", "drawings", "--classes", "-1"], "classes must be at least 0. Got -1"),
        ([], "--data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_raise_before_anything_is_written(options, says, drawings, monkeypatch, capsys):
    monkeypatch.chdir(drawings.parent)
    assert says in message_of(capsys, "train", "images", *options)
    assert [path.name for path in Path().iterdir()] == ["drawings"]


def test_data_show_counts_and_draws(drawings, tmp_path, capsys):
    (drawings / ".DS_Store").write_bytes(b"\0")
    (drawings / "trees" / "broken.jpg").write_bytes(b"\xff\xd8")
    sheet = tmp_path / "sheet.png"
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a process of its own
        main(["data", "show", str(drawings), "--size", "16", "--num", "12", "--out", str(sheet)])
    out, err = capsys.readouterr()
    for line in ("drawings", "16 x 16 x 3", "pictures", "30", "class 0: houses", "class 1: trees", "15", "mean"):
        assert line in out
    assert err.startswith("jflow: 1 of 31 pictures of") and "trees/broken.jpg (" in err and err.count("\n") == 1
    with Image.open(sheet) as image:
        assert min(image.size) > 50
    told = message_of(capsys, "data", "show", drawings, "--out", sheet)
    assert "which exists: pass --overwrite to replace it, or another name by --out." in told
    (tmp_path / "empty").mkdir()
    assert "must have pictures" in message_of(capsys, "data", "show", tmp_path / "empty", "--out", tmp_path / "x.png")


@pytest.mark.slow
def test_a_run_on_pictures_outlives_them(drawings, tmp_path, capsys):
    """Trained, stopped in between, judged; then drawn from, and from its exported model, without the pictures."""
    run, command = tmp_path / "run", ["train", "images", "--data", str(drawings)]
    command += ["--size", "8", "--channels", "8", "--steps", "4", "--batch-size", "4", "--flip"]
    main([*command, "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["options"]["classes"] == 2
    main([*command, "--out", str(run)])
    assert "is trained already" in capsys.readouterr().out
    main(["evaluate", str(run), "--num", "8", "--steps", "2"])
    table = capsys.readouterr().out
    for name in ("classifier on held-out pictures", "accuracy of 8 draws, scale 2", "energy distance"):
        assert name in table
    os.rename(drawings, tmp_path / "gone")
    main(["export", str(run), "--out", str(tmp_path / "model.safetensors")])
    code = "import sys; from jflow.cli import main; main(sys.argv[1:])"
    for source in (run, tmp_path / "model.safetensors"):
        argv = ["sample", str(source), "--num", "4", "--steps", "2", "--out", f"{source}.npz"]
        subprocess.run([sys.executable, "-c", code, *argv], check=True, cwd=tmp_path)
    with np.load(f"{run}.npz") as a, np.load(f"{tmp_path / 'model.safetensors'}.npz") as b:
        assert a["x"].shape == (4, 8, 8, 3) and np.array_equal(a["x"], b["x"]) and a["label"].tolist() == [0, 1, 0, 1]
    images._data.cache_clear()
    assert "Pictures must be in a folder" in message_of(capsys, "evaluate", run)


@pytest.mark.slow
def test_a_run_without_classes(drawings, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", "images", "--data", str(drawings / "trees"), "--grey", *SMALL, *DIT, "--out", str(run)])
    main(["evaluate", str(run), "--num", "8", "--steps", "2"])
    assert "classifier" not in capsys.readouterr().out
    assert (run / "samples.png").stat().st_size and (run / "animation.gif").stat().st_size
    main(["sample", str(run), "--num", "4", "--steps", "2", "--out", str(tmp_path / "draws.npz")])
    with np.load(tmp_path / "draws.npz") as draws:
        assert list(draws) == ["x"] and draws["x"].shape == (4, 8, 8, 1)


MINE = '''
from __future__ import annotations

import dataclasses

import numpy as np
import optax
from flax import nnx

import jflow as jf
from jflow.recipes import AbstractRecipe


@dataclasses.dataclass(frozen=True)
class Points(AbstractRecipe):
    """Points on a line."""

    steps: int = 2
    """Steps of the optimiser."""
    seed: int = 0
    """Seed of all."""

    shape = (1,)
    num_classes = None
    draws = 4
    minutes = "0"

    def init(self):
        net = jf.nn.MLP(self.shape, width=4, depth=1, rngs=nnx.Rngs(self.seed))
        return jf.train.init(jf.Field(net, jf.CondOT(), predicts="velocity"), optax.sgd(0.1))

    def loss(self, field, key, example):
        return jf.matching_loss(field, key, example["x"])

    def batch(self, step):
        return {"x": np.ones((4, 1), np.float32)}

    def evaluate(self, field, sampler, num, seed):
        return []

    def sheet(self, x, label):
        return jf.plot.loss_curve([1], [1.0])

    def pictures(self, field, folder):
        pass


class Other:
    pass
'''


def test_a_recipe_in_a_file_of_your_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    main(["train", "mine.py:Points", "--steps", "3"])
    config = json.loads(Path("runs/points/config.json").read_text())
    assert config["recipe"] == "points" and config["options"] == {"steps": 3, "seed": 0}
    own = ["--recipe", "mine.py:Points"]
    main(["sample", "runs/points", "--num", "3", "--steps", "2", *own])
    with np.load("draws.npz") as draws:
        assert draws["x"].shape == (3, 1)
    main(["evaluate", "runs/points", *own])
    main(["export", "runs/points", *own])
    assert "pass --recipe FILE.py:CLASS" in message_of(capsys, "evaluate", "runs/points")
    for name, says in {
        "none.py:Points": "no such file",
        "mine.py:Nothing": "Got 'Nothing' of mine.py, which is missing",
        "mine.py:Other": "which is something else",
        "mine:Points": "or FILE.py:CLASS for one of your own. Got 'mine:Points'",
    }.items():
        assert says in message_of(capsys, "train", name)
    assert "steps" in message_of(capsys, "train", "mine.py:Points", "--steps", "many")
