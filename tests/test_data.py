"""Data sets, batches, files, and what is wrong with them."""

import functools as ft
import gzip
import hashlib
import os
import pathlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jflow import data
from jflow.data import _mnist

# --- the record


def test_one_key_gives_independent_planar_sets():
    draws = [draw(jr.key(0), 4000) for draw in (data.moons, data.circles, data.spirals, data.checkerboard)]
    draws.append(data.eight_gaussians(jr.key(0), 4000))
    correlation = np.corrcoef(np.concatenate(draws, 1).T)
    apart = np.arange(10)[:, None] // 2 != np.arange(10) // 2
    assert np.abs(correlation[apart]).max() < 0.07  # 4.4 standard errors


def test_a_dataset_is_a_copy_that_stays_as_it_is():
    x, label = np.ones((4, 2), np.float32), np.array([0, 2, 1, 0])
    made = data.from_array(x, label, name="mine")
    x[0], label[0] = 7, 1
    assert made.x[0, 0] == 1 and made.label[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        made.x[0] = 3
    with pytest.raises(AttributeError):
        made.x = x
    assert len(made) == 4 and made.num_classes == 3 and made.label.dtype == np.int32
    assert repr(made) == "Dataset(mine: 4 x (2,), 3 classes)"


def test_a_dataset_is_indexed_like_an_array():
    made = data.from_array(np.arange(8.0).reshape(4, 2), np.array([0, 1, 2, 3]))
    assert made[2]["x"].tolist() == [4, 5] and made[2]["label"] == 2
    assert made[np.array([3, 0])]["label"].tolist() == [3, 0]
    assert made[1:3]["x"].shape == (2, 2)
    assert set(data.from_array(made.x)[0]) == {"x"}


def test_rules_of_conversion():
    bytes_ = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(data.from_array(bytes_).x, [[-1, -0.6, 1]], atol=1e-6)
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        made = data.from_array(jnp.asarray([[0.5, 300.0]], dtype) if dtype == jnp.bfloat16 else bytes_.astype(dtype))
        assert made.x.dtype == np.float32 and made.x.max() > 1  # not rescaled
    assert data.from_array(bytes_, np.array([3], np.uint8), num_classes=10).num_classes == 10


GOOD = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (np.zeros((0, 2)), None, "at least one example"),
        (np.zeros((2, 0)), None, "at least one number"),
        (np.zeros(3), None, r"x\[:, None\]"),
        (np.zeros(()), None, "at least one axis after the first"),
        (
            np.array([[1.0], [np.nan], [np.inf]]),
            None,
            "2 of 3 examples of array that are not, the first at index 1",
        ),
        (np.array([[1e300]]), None, "finite in float32"),
        (np.zeros((3, 2), np.int64), None, r"uint8 \(images, 0..255\) or floating point. Got int64"),
        (np.zeros((3, 2), bool), None, "Got bool"),
        (np.array([["a"]]), None, "Got <U1"),
        (np.array([[object()]]), None, "Got object"),
        (GOOD, np.zeros(3), "Labels must be integers. Got float64"),
        (GOOD, np.zeros(2, int), r"shape \(3,\). Got \(2,\)"),
        (GOOD, np.zeros((3, 4), int), "argmax"),
        (GOOD, np.array([0, -1, 0]), "Got -1 .. 0"),
        (GOOD, np.array([0, 2**32, 0]), None),
    ],
)
def test_bad_arrays(x, label, message):
    if message is None:  # out of range once it is said how many classes there are
        with pytest.raises(ValueError, match=r"Got 0 .. 4294967296"):
            data.from_array(x, label, num_classes=10)
        return
    with pytest.raises(ValueError, match=message):
        data.from_array(x, label)


def test_classes_without_labels():
    with pytest.raises(ValueError, match="come together"):
        data.Dataset(GOOD.astype(np.float32), None, "mine", 10)


# --- .npz


def test_npz_round_trip(tmp_path):
    path = tmp_path / "draws.npz"
    np.savez(path, x=GOOD, label=np.array([0, 1, 1]))
    made = data.from_npz(path)
    assert made.name == "draws" and made.num_classes == 2 and made.x.shape == (3, 2)
    np.savez_compressed(path, x=np.zeros((2, 3, 3, 1), np.uint8))
    assert data.from_npz(str(path)).x.min() == -1
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8")
    np.savez(path, x=columns, notes=np.array(["any", "words"]))
    np.testing.assert_array_equal(data.from_npz(path).x, columns)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "flipped", "npy", "pickle", "objects", "directory"])
def test_bad_npz(tmp_path, kind):
    path = tmp_path / "draws.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((100, 3)))
    whole = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("x,label\n1,2\n")
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    elif kind == "npy":
        with open(path, "wb") as file:
            np.save(file, GOOD)
    elif kind == "pickle":
        GOOD.dump(path)
    elif kind == "objects":
        np.savez(path, x=np.array([[object()]]))
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=r"must be an .npz of plain arrays. Got .*draws.npz, which is damaged or"):
        data.from_npz(path)


def test_npz_without_examples_or_without_file(tmp_path):
    path = tmp_path / "draws.npz"
    with pytest.raises(FileNotFoundError, match=r"Got .*draws.npz: no such file"):
        data.from_npz(path)
    np.savez(path, images=GOOD)
    with pytest.raises(ValueError, match=r"holds \['images'\]; write it with"):
        data.from_npz(path)


# --- digits


def test_digits_are_divided_once_and_for_all():
    train, test, all_ = (data.digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(all_)) == (1437, 360, 1797)
    assert train.x.shape[1:] == (8, 8, 1) and train.x.min() == -1 and train.x.max() == 1
    np.testing.assert_array_equal(np.concatenate([train.x, test.x]), all_.x)
    from sklearn.datasets import load_digits

    rows = load_digits().data / 8 - 1
    assert {row.tobytes() for row in all_.x.reshape(-1, 64)} == {row.tobytes() for row in rows.astype(np.float32)}
    # stratified: every class has its share, to one digit
    share = np.bincount(all_.label) * 360 / 1797
    assert np.abs(np.bincount(test.label) - share).max() <= 1
    np.testing.assert_array_equal(data.digits("test").x, test.x)
    assert not np.array_equal(data.digits("test", seed=1).x, test.x)


def test_a_prefix_of_the_digits_is_a_fair_sample():
    from jflow import metrics

    train, test = data.digits("train").x, data.digits("test").x
    first, last = (metrics.energy_distance(part, test) for part in (train[:600], train[-600:]))
    assert max(first, last) < 1.3 * min(first, last)  # in the order of the file, by writers, it is 1.6


def test_an_svm_tells_the_digits_apart():
    from sklearn.svm import SVC

    train, test = data.digits("train"), data.digits("test")
    svm = SVC(C=10).fit(train.x.reshape(-1, 64), train.label)
    assert svm.score(test.x.reshape(-1, 64), test.label) >= 0.985


@pytest.mark.parametrize("load", [data.digits, ft.partial(data.mnist, dir="/nowhere")])
def test_unknown_split(load):
    with pytest.raises(ValueError, match=r"'train', 'test' or 'all'. Got 'validation'"):
        load("validation")


# --- MNIST


@pytest.fixture
def mnist_files(monkeypatch):
    """A miniature of MNIST, as `{name: content}`, that passes for the published one."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 30), ("t10k", 1200)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) * (rng.random((n, 1, 1)) < 0.1)
        for kind, magic, values in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, np.arange(n) % 10)):
            header = np.array([magic, *(values.shape if values.ndim > 1 else (n,))], ">i4").tobytes()
            files[f"{part}-{kind}-ubyte"] = header + values.astype(np.uint8).tobytes()
    table = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    monkeypatch.setattr(_mnist, "_FILES", table)
    return files


def write(folder, files, part="", compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.startswith(part):
            path = folder / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(content, 1) if compress else content)
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_mnist_official_parts(tmp_path, mnist_files, compress):
    folder = write(tmp_path, mnist_files, compress=compress)
    train, test, all_ = (data.mnist(split, folder) for split in ("train", "test", "all"))
    assert [len(part) for part in (train, test, all_)] == [30, 1200, 1230] and train.name == "mnist"
    assert train.num_classes == 10 and train.label[:11].tolist() == [*range(10), 0]
    pixels = np.frombuffer(mnist_files["train-images-idx3-ubyte"], np.uint8, offset=16)
    np.testing.assert_allclose(train.x.ravel(), pixels / 127.5 - 1, atol=1e-6)
    assert train.x.shape == (30, 28, 28, 1)


def test_mnist_from_the_test_images_alone(tmp_path, mnist_files, monkeypatch):
    write(tmp_path / "mnist", mnist_files, "t10k")
    monkeypatch.setenv("JFLOW_DATA_DIR", str(tmp_path))
    train, test = data.mnist("train"), data.mnist("test")
    assert (len(train), len(test), train.name) == (200, 1000, "mnist-t10k")
    assert np.bincount(train.label).tolist() == [20] * 10


def test_mnist_is_downloaded_where_it_is_missing(tmp_path, mnist_files, monkeypatch):
    source = write(tmp_path / "source", mnist_files)
    monkeypatch.setattr(_mnist, "_ADDRESS", source.as_uri() + "/")
    monkeypatch.delenv("JFLOW_DATA_DIR", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    cache = tmp_path / ".cache" / "jflow" / "mnist"
    write(cache, mnist_files, "train-labels", compress=False)  # what is there stays
    assert len(data.mnist("train")) == 30
    assert sorted(os.listdir(cache)) == sorted(
        name if name.startswith("train-labels") else f"{name}.gz" for name in mnist_files
    )
    monkeypatch.setattr(_mnist, "_ADDRESS", "file:///nowhere/")
    assert len(data.mnist("test")) == 1200


@pytest.mark.parametrize("damage", ["cut", "altered", "other"])
def test_a_damaged_download_leaves_nothing_behind(tmp_path, mnist_files, monkeypatch, damage):
    source = write(tmp_path / "source", mnist_files)
    path = source / "t10k-images-idx3-ubyte.gz"
    spoil(path, damage)
    monkeypatch.setattr(_mnist, "_ADDRESS", source.as_uri() + "/")
    with pytest.raises(ValueError, match="published one to the last byte"):
        data.mnist("train", tmp_path / "cache")
    left = os.listdir(tmp_path / "cache")
    assert sorted(left) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def spoil(path, damage):
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        raw = bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
        raw[500] ^= 1
        path.write_bytes(gzip.compress(bytes(raw), 1) if path.suffix == ".gz" else bytes(raw))
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    else:
        path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("compress", "damage", "message"),
    [
        (True, "cut", "does not unpack"),
        (True, "altered", "has sha256 .* instead of"),
        (True, "other", "does not unpack"),
        (False, "cut", "unpacks to 470408 bytes instead of 940816"),
        (False, "altered", "has sha256"),
        (False, "longer", "unpacks to at least 940817 bytes"),
    ],
)
def test_damaged_mnist_files(tmp_path, mnist_files, compress, damage, message):
    folder = write(tmp_path, mnist_files, "t10k", compress)
    path = next(folder.glob("t10k-images*"))
    spoil(path, damage)
    with pytest.raises(ValueError, match=f"{path.name} is truncated or altered.*{message}.*delete it"):
        data.mnist("test", folder)


def test_mnist_without_network_or_folder(tmp_path, mnist_files, monkeypatch):
    monkeypatch.setattr(_mnist, "_ADDRESS", "file:///nowhere/")
    with pytest.raises(OSError, match=r"MNIST must be in .*set JFLOW_DATA_DIR"):
        data.mnist("train", tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="MNIST must be in"):
        data.mnist("train", tmp_path / "file" / "mnist")


@pytest.mark.skipif(
    not pathlib.Path(os.environ.get("JFLOW_DATA_DIR", "/nowhere"), "mnist").is_dir(),
    reason="MNIST is not here",
)
def test_mnist_itself():
    train, test = data.mnist("train"), data.mnist("test")
    assert (len(train), len(test)) in [(9000, 1000), (60_000, 10_000)]
    assert train.x.shape[1:] == (28, 28, 1) and train.x.min() == -1 and train.x.max() == 1
    np.testing.assert_allclose(train.x.mean(), 2 * 0.1307 - 1, atol=0.01)


# --- batches

SMALL = data.from_array(np.arange(10.0)[:, None], np.arange(10))


def labels(steps, batch_size=4, seed=0):
    return np.concatenate([data.batch(SMALL, seed, step, batch_size)["label"] for step in steps])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_batches_run_through_epochs(batch_size):
    seen = labels(range(-(-40 // batch_size)), batch_size)[:40].reshape(4, 10)
    assert (np.sort(seen, axis=1) == np.arange(10)).all()
    assert len({tuple(order) for order in seen}) == 4
    np.testing.assert_array_equal(seen.ravel(), labels(range(40), 1))  # whatever the size of a batch


def test_a_batch_is_a_function_of_seed_and_step():
    there = [data.batch(SMALL, 3, step, 4) for step in range(9)]
    for step in reversed(range(9)):
        again = data.batch(SMALL, 3, step, 4)
        np.testing.assert_array_equal(again["x"], there[step]["x"])
        np.testing.assert_array_equal(again["label"], again["x"][:, 0])
    again["x"][:] = 7  # a batch is the caller's
    np.testing.assert_array_equal(data.batch(SMALL, 3, 0, 4)["x"], there[0]["x"])


def test_seeds_share_no_epoch():
    orders = {tuple(labels([epoch], 10, seed)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_orders_are_uniform():
    first = np.array([labels([0], 1, seed)[0] for seed in range(2000)])
    counts = np.bincount(first, minlength=10)
    assert np.abs(counts - 200).max() <= 4 * np.sqrt(2000 * 0.1 * 0.9)


def test_batches_without_labels():
    assert set(data.batch(data.from_array(SMALL.x), 0, 0, 4)) == {"x"}


def test_loader_runs_through_epochs_and_resumes():
    loader = data.loader(SMALL, 4, seed=1)
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(3)]
    state = iterator.get_state()
    later = [next(iterator)["label"] for _ in range(7)]
    seen = np.concatenate([*(b["label"] for b in batches), *later]).reshape(4, 10)
    assert (np.sort(seen, axis=1) == np.arange(10)).all() and len({tuple(order) for order in seen}) == 4
    assert batches[0]["x"].shape == (4, 1) and batches[0]["x"].dtype == np.float32
    fresh = iter(data.loader(SMALL, 4, seed=1))
    fresh.set_state(state)
    np.testing.assert_array_equal([next(fresh)["label"] for _ in range(7)], later)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.batch(SMALL, 0, 0, 0), "Got batch_size=0"),
        (lambda: data.batch(SMALL, 0, -1, 4), "Got step=-1, seed=0"),
        (lambda: data.batch(SMALL, -1, 0, 4), "seed=-1"),
        (lambda: data.loader(SMALL, 0), "Got batch_size=0"),
        (lambda: data.loader([], 4), "empty source"),
    ],
)
def test_bad_batches(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the plane

PLANAR = [data.moons, data.circles, data.spirals, data.checkerboard, data.eight_gaussians]
N = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("draw", PLANAR, ids=lambda draw: draw.__name__)
def test_planar_sets_are_functions_of_their_key(draw):
    x = draw(jr.key(0), 50)
    assert x.shape == (50, 2) and x.dtype == jnp.float32 and jnp.isfinite(x).all()
    np.testing.assert_array_equal(x, draw(jr.key(0), 50))
    assert not np.array_equal(x, draw(jr.key(1), 50))
    np.testing.assert_allclose(jax.jit(draw, static_argnums=1)(jr.key(0), 50), x, atol=1e-5)
    with pytest.raises(ValueError, match=r"n must be an integer of at least 1\. Got 0"):
        draw(jr.key(0), 0)


def drawn(draw, seed, n, **options):
    """A draw in double precision, compiled as one."""
    return np.asarray(jax.jit(lambda key: draw(key, n, **options))(jr.key(seed)), np.float64)


def within(values, mean, std, sds=4):
    """Whether the mean of `values` is `mean` within 4 standard errors."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - mean) <= sds * std / np.sqrt(len(values))


def test_E7_checkerboard():
    x = drawn(data.checkerboard, 0, N)
    assert np.abs(x).max() <= 5
    i, j = np.floor((x + 5) / 2.5).astype(int).clip(0, 3).T
    assert ((i + j) % 2 == 0).all()
    square = (x**2).sum(axis=1)
    assert within(square, 50 / 3, square.std())
    counts = np.bincount(4 * i + j, minlength=16)
    share = N / 8
    assert np.abs(counts[counts > 0] - share).max() <= 4 * np.sqrt(share * 7 / 8) and (counts > 0).sum() == 8
    inside = (x + 5) % 2.5 / 2.5  # uniform in its square, both coordinates
    assert within(inside[:, 0], 0.5, np.sqrt(1 / 12)) and within(inside.prod(axis=1), 0.25, np.sqrt(1 / 9 - 1 / 16))


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "squares"), [(1, 1), (3, 5), (6, 18)])
def test_other_boards(cells, squares):
    x = drawn(data.checkerboard, 0, 2000, cells=cells, half_width=1)
    i, j = np.floor((x + 1) / 2 * cells).astype(int).clip(0, cells - 1).T
    assert ((i + j) % 2 == 0).all() and len(set(zip(i, j, strict=True))) == squares
    with pytest.raises(ValueError, match="cells=0"):
        data.checkerboard(jr.key(0), 10, cells=0)


@pytest.mark.slow
def test_E7_circles():
    radius = np.linalg.norm(drawn(data.circles, 0, N), axis=1)
    outer, inner = radius[radius > 3.75], radius[radius <= 3.75]
    assert within(radius > 3.75, 0.5, 0.5)
    for part, r in ((outer, 5), (inner, 2.5)):
        assert within(part, r + 0.25**2 / (2 * r), 0.25)  # the tangential noise adds s^2 / 2r
        assert part.std() == pytest.approx(0.25, abs=4 * 0.25 / np.sqrt(2 * len(part)) + 1e-3)
    exact = np.linalg.norm(drawn(data.circles, 0, 100, noise=0, factor=0.2, scale=2), axis=1)
    assert (np.isclose(exact, 2, atol=1e-5) | np.isclose(exact, 0.4, atol=1e-5)).all()


@pytest.mark.slow
def test_E7_moons():
    x = drawn(data.moons, 0, N, noise=0, scale=1)
    upper = np.isclose(np.linalg.norm(x, axis=1), 1, atol=1e-5) & (x[:, 1] >= -1e-5)
    lower = np.isclose(np.linalg.norm(x - [1, 0.5], axis=1), 1, atol=1e-5) & (x[:, 1] <= 0.5 + 1e-5)
    assert (upper | lower).all() and within(lower, 0.5, 0.5)
    # E cos a = 0 and E sin a = 2 / pi, so the mean is (1/2, 1/4), and so it stays with noise and scale
    noisy = drawn(data.moons, 1, N)
    assert within(noisy[:, 0], 2.5, noisy[:, 0].std()) and within(noisy[:, 1], 1.25, noisy[:, 1].std())


@pytest.mark.slow
def test_E7_spirals():
    x = drawn(data.spirals, 0, N, noise=0, scale=1)
    radius = np.linalg.norm(x, axis=1)
    off = (np.arctan2(x[:, 1], x[:, 0]) - 3 * np.pi * radius) / np.pi
    far = radius > 0.01
    assert np.abs(off - np.round(off))[far].max() < 1e-3
    assert within(np.round(off)[far] % 2, 0.5, 0.5)  # both arms alike
    assert within(radius**2, 0.5, np.sqrt(1 / 12))  # v is uniform
    one = drawn(data.spirals, 0, N, turns=0.5, noise=0, scale=2)
    assert np.linalg.norm(one, axis=1).max() <= 2 + 1e-5
    turned = np.arctan2(one[:, 1], one[:, 0]) - np.pi * np.linalg.norm(one, axis=1) / 2
    np.testing.assert_allclose(np.sin(turned), 0, atol=1e-3)  # half a turn from the centre to the rim


@pytest.mark.slow
def test_E7_eight_gaussians():
    x = drawn(data.eight_gaussians, 0, N)
    square = (x**2).sum(axis=1)
    assert within(square, 25 + 2 * 0.5**2, square.std())
    exact = np.linalg.norm(drawn(data.eight_gaussians, 0, 100, radius=2, std=0), axis=1)
    np.testing.assert_allclose(exact, 2, rtol=1e-5)
    mode = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    counts = np.bincount(mode, minlength=8)
    assert np.abs(counts - N / 8).max() <= 4 * np.sqrt(N / 8 * 7 / 8)
