"""Models as files: what is saved comes back bit for bit, in a fresh process too, and no damage is silent."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from flax import nnx
from references import unchecked

import jflow as jf
from jflow.train._model import pack, unpack


def mlp(**options):
    return jf.nn.MLP(2, width=8, depth=2, rngs=nnx.Rngs(1), **options)


class Mine(nnx.Module):
    """A user's network, of a part of jf.nn and parts of its own."""

    def __init__(self, width, *, rngs):
        self.features = jf.nn.FourierFeatures(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2 + 4, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)])
        self.scale = nnx.Variable(jnp.array([2, 3], jnp.int32))

    def __call__(self, t, x, args, key=None):
        h = self.layers[0](jnp.concatenate([x, self.features(t)]))
        return self.layers[1](jax.nn.silu(h)) * self.scale[...]


def partial(w):
    return jtu.Partial(lambda p, t, x, args: p["w"] * x + p["b"], {"w": w, "b": np.float32(0.5) * np.ones(2)})


def unet():
    return jf.nn.UNet(IMAGE, channels=[4, 8], layers=1, embedding=4, attention=(1,), heads=2, rngs=nnx.Rngs(3))


def dit():
    return jf.nn.DiT(IMAGE, patch=2, dim=8, layers=1, heads=2, num_classes=4, rngs=nnx.Rngs(4))


IMAGE, COLOURED = (4, 4, 1), jf.Normal(jf.Coloured(jnp.eye(16) + 0.5))
NETWORKS = {
    "MLP": (lambda: jf.Field(mlp(), jf.CondOT(), "velocity"), (2,), None),
    "MLP of a shape": (lambda: jf.Field(jf.nn.MLP(IMAGE, width=4, rngs=nnx.Rngs(2)), jf.VP(), "noise"), IMAGE, None),
    "labels": (lambda: jf.Field(mlp(num_classes=3, null=1, embedding=5), jf.Cosine(), "v"), (2,), jnp.int32(2)),
    "vectors": (lambda: jf.Field(mlp(condition_size=3), jf.VE(sigma_max=9.0), "data"), (2,), jnp.ones(3)),
    "bfloat16": (lambda: jf.Field(mlp(dtype=jnp.bfloat16), jf.LinearVP(), "velocity"), (2,), None),
    "UNet": (lambda: jf.Field(unet(), jf.CondOT(), "velocity"), IMAGE, None),
    "DiT": (lambda: jf.Field(dit(), jf.CondOT(source=COLOURED), "velocity"), IMAGE, jnp.int32(1)),
    "Bounded": (lambda: jf.Field(jf.nn.Bounded(mlp(), 0.0, 0.25), jf.CondOT(), "velocity"), (2,), None),
    "Preconditioned": (lambda: jf.Preconditioned(mlp(), jf.VE(), sigma_data=0.37), (2,), None),
}


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, (jax.Array, np.ndarray))]


def same(a, b):
    pairs = zip(arrays(a), arrays(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


DRAW = """
import sys, json, numpy as np, jax, jax.random as jr, jflow as jf
assert "flax" not in sys.modules
for path, shape, label in json.loads(sys.argv[1]):
    args = None if label is None else np.asarray(label, np.int32 if isinstance(label, int) else np.float32)
    x = jf.generate(jf.load(path), jr.key(5), 3, tuple(shape), jf.UniformGrid(3, 0.1, 0.9), args=args).x
    np.save(path + ".npy", x)
"""


def draw(field, shape, args):
    return jf.generate(field, jr.key(5), 3, shape, jf.UniformGrid(3, 0.1, 0.9), args=args).x


@pytest.mark.slow
def test_each_network_of_the_library_draws_the_same_in_a_fresh_process(tmp_path):
    """The file alone is enough, and the samples are the same bit for bit."""
    jobs, drawn = [], {}
    for name, (make, shape, args) in NETWORKS.items():
        field, path = make(), tmp_path / f"{name}.safetensors"
        jf.save(path, field)
        again = jf.load(path)
        assert same(field, again) and type(again) is type(field), name
        assert jtu.tree_structure(again.path) == jtu.tree_structure(field.path), name
        drawn[path] = draw(field, shape, args)
        jobs.append((str(path), shape, None if args is None else args.tolist()))
    done = subprocess.run([sys.executable, "-c", DRAW, json.dumps(jobs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, x in drawn.items():
        assert x.dtype == np.float32 and np.array_equal(np.load(f"{path}.npy"), x), path


class Around(eqx.Module):
    net: eqx.nn.MLP

    def __call__(self, t, x, args):
        return self.net(x), self.net(x + t)


USERS = {
    "a module": (lambda seed: jf.Field(Mine(3, rngs=nnx.Rngs(seed)), jf.CondOT(), "velocity")),
    "a function": (lambda seed: jf.Field(partial(jr.normal(jr.key(seed), (2,))), jf.CondOT(), "velocity")),
    "an equinox module": (
        lambda seed: jf.Field(Around(eqx.nn.MLP(2, 2, 3, 1, key=jr.key(seed))), jf.CondOT(), ("velocity", "noise"))
    ),
    "two heads": (lambda seed: jf.Field(Mine(3, rngs=nnx.Rngs(seed)), jf.VP(), ("velocity", "noise"), draws=True)),
    "a flow map": (lambda seed: jf.FlowMap(Mine(3, rngs=nnx.Rngs(seed)), jf.CondOT())),
}


@pytest.mark.parametrize("name", USERS)
def test_a_network_of_the_user_is_filled(tmp_path, name):
    field, like = USERS[name](1), USERS[name](0)
    jf.save(tmp_path / "m", field)
    assert not same(field, like)
    again = jf.load(tmp_path / "m", like.net)
    assert same(field, again) and again.predicts == field.predicts
    shapes = jax.eval_shape(lambda: USERS[name](0).net) if name == "a module" else like.net
    assert same(field, jf.load(tmp_path / "m", shapes))
    with pytest.raises(ValueError, match=r"must have what makes it.*jf\.load\(path, like\)"):
        jf.load(tmp_path / "m")


class Own(jf.AbstractField):
    """A user's field, along a path of functions."""

    net: jf.nn.MLP
    path: jf.CustomPath
    key: jax.Array
    predicts = "velocity"

    def predict(self, targets, t, x, args=None):
        return jf.given(self.path, t, x, (self.net(t, x, args),), ("velocity",), targets, args)


def own(seed, power=1):
    net = jf.nn.MLP(2, width=4, depth=1, rngs=nnx.Rngs(seed))
    return Own(net, jf.CustomPath(lambda t: t**power, lambda t: 1 - t**power), jr.key(seed))


def test_a_field_of_the_user_is_filled(tmp_path):
    """One that JSON does not hold is loaded into another like it, keys included; along another path it raises."""
    jf.save(tmp_path / "m", own(1))
    again = jf.load(tmp_path / "m", own(0))
    assert again.key == jr.key(1) and same(again.net, own(1).net)
    for like in (None, own(0).net):
        with pytest.raises(ValueError, match="a field like it"):
            jf.load(tmp_path / "m", like)
    jf.save(tmp_path / "p", jf.Field(own(1).net, own(1).path, "velocity"))
    with pytest.raises(ValueError, match=r"a field like it.*Got CustomPath\.alpha, a function: make it in code\.$"):
        jf.load(tmp_path / "p")
    with pytest.raises(ValueError, match=r"same path.*path\.values"):
        jf.load(tmp_path / "m", own(0, power=2))


def other(**options):
    return jf.Field(jf.nn.MLP(2, **{"width": 8, "depth": 2, "rngs": nnx.Rngs(0), **options}), jf.CondOT(), "velocity")


WRONG = {
    "shapes": (lambda: other(width=9), r"names, shapes.*net\.hidden\.0\.bias\.value: saved float32\[8\], wanted float"),
    "names": (lambda: other(depth=1), r"net\.hidden\.1\.bias\.value: saved float32\[8\], wanted nothing"),
    "types": (lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16), other()), r"wanted bfloat16\[8\]"),
    "path": (lambda: jf.Field(mlp(), jf.Cosine(), "velocity"), r"same path.*saved CondOT, wanted Cosine"),
    "source": (lambda: jf.Field(mlp(), jf.CondOT(source=jf.GIVEN), "velocity"), r"saved Normal, wanted Given"),
    "prediction": (lambda: jf.Field(mlp(), jf.CondOT(), "noise"), r"saved velocity, wanted noise"),
    "field": (lambda: jf.FlowMap(mlp(), jf.CondOT()), r"saved Field, wanted FlowMap"),
    "network": (lambda: Mine(3, rngs=nnx.Rngs(0)), r"names, shapes and types"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_clear_error(tmp_path, name):
    jf.save(tmp_path / "m", jf.Field(mlp(), jf.CondOT(), "velocity"))
    like, says = WRONG[name]
    with pytest.raises(ValueError, match=says) as caught:
        jf.load(tmp_path / "m", like())
    assert "must" in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_of_a_users_network_is_compared(tmp_path):
    """A setting that is no array, as the slope of a function, is not replaced in silence."""

    def field(slope):
        return jf.Field(jtu.Partial(lambda a, w, t, x, args: a * w * x, slope, jnp.ones(2)), jf.CondOT(), "velocity")

    jf.save(tmp_path / "m", field(0.5))
    with pytest.raises(ValueError, match=r"same settings.*saved 0\.5, wanted 0\.25"):
        jf.load(tmp_path / "m", field(0.25).net)


def test_a_network_that_was_changed_is_the_users(tmp_path):
    """A jf.nn network with another layer is not what its constructor makes, so it must be given."""
    net = mlp()
    net.out = nnx.Linear(8, 2, use_bias=False, rngs=nnx.Rngs(0))
    jf.save(tmp_path / "m", jf.Field(net, jf.CondOT(), "velocity"))
    with pytest.raises(ValueError, match=r"not one of jf\.nn as built"):
        jf.load(tmp_path / "m")
    assert same(jf.load(tmp_path / "m", net).net, net)


KINDS = ("bool", "int8", "uint16", "int32", "uint64", "float16", "bfloat16", "float32", "float64", "complex64")


def small():
    rng = np.random.default_rng(0)
    made = {kind: rng.integers(0, 2, (3, 2)).astype(jnp.dtype(kind)) for kind in KINDS}
    return {**made, "float8_e5m2": np.ones(3, jnp.float8_e5m2), "none": np.ones((0, 2)), "one": np.float32(3)[...]}


def test_the_layout_is_that_of_safetensors():
    """Read here by its rules alone: a length, a header whose offsets leave no hole, and the arrays."""
    held = small()
    blob = pack(held, {"word": "\u00e4"})
    (size,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + size])
    assert size % 8 == 0 and set(header.pop("__metadata__")) == {"word", "sha256"}
    stop = 0
    for name, array in held.items():
        entry = header[name]
        assert entry["data_offsets"] == [stop, stop + array.nbytes] and entry["shape"] == list(array.shape)
        assert blob[8 + size + stop : 8 + size + stop + array.nbytes] == array.tobytes()
        stop += array.nbytes
    assert 8 + size + stop == len(blob)
    assert header["bfloat16"]["dtype"] == "BF16" and header["bool"]["dtype"] == "BOOL" and len(header) == len(held)
    words, again = unpack(blob)
    assert words["word"] == "\u00e4"
    assert all(again[name].dtype == array.dtype and np.array_equal(again[name], array) for name, array in held.items())
    with pytest.raises(ValueError, match=r"complex128 at z"):
        pack({"z": np.ones(2, complex)}, {})


def test_no_flipped_bit_is_silent():
    """Every byte of header and arrays is under the checksum: 10,000 flips, and every length."""
    blob, rng = pack(small(), {"word": "x"}), np.random.default_rng(1)
    assert len(blob) < 5000
    for i in rng.integers(0, 8 * len(blob), 10_000):
        with pytest.raises(Exception):  # noqa: B017  # a file gives words to each, see below
            unpack(blob[: i // 8] + bytes([blob[i // 8] ^ 1 << i % 8]) + blob[i // 8 + 1 :])
    for length in range(len(blob)):
        with pytest.raises(Exception):  # noqa: B017
            unpack(blob[:length])
    with pytest.raises(ValueError, match="checksum"):
        unpack(blob + b"\0")


def test_a_damaged_or_foreign_file_raises_in_words(tmp_path):
    path = tmp_path / "m"
    jf.save(path, jf.Field(mlp(), jf.CondOT(), "velocity"))
    blob = path.read_bytes()
    rng = np.random.default_rng(2)
    bad = [blob[: i // 8] + bytes([blob[i // 8] ^ 1 << i % 8]) + blob[i // 8 + 1 :] for i in rng.integers(0, 8e3, 40)]
    head = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}).encode()
    bad += [b"", b"x", blob[:-1], b"\xff" * 8, b"[" * 100_000, struct.pack("<Q", len(head)) + head + b"0000"]
    bad += [pack({}, {"format": "jflow 9"}), pack({}, {}), struct.pack("<Q", 2) + b"[]"]
    bad += [struct.pack("<Q", 200_000) + b"[" * 200_000]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must be in a file as jf\.save wrote it") as caught:
            jf.load(path)
        assert len(str(caught.value)) < 600
    with pytest.raises(FileNotFoundError, match="must be in a file"):
        jf.load(tmp_path / "none")
    with pytest.raises(ValueError, match="must be in a file that can be read"):
        jf.load(tmp_path)


def test_a_file_is_written_whole_and_not_overwritten_unasked(tmp_path, monkeypatch):
    field, path = jf.Field(mlp(), jf.CondOT(), "velocity"), tmp_path / "new" / "m.safetensors"
    jf.save(str(path), field)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must not be overwritten by accident"):
        jf.save(path, field)
    with pytest.raises(ValueError, match="must not be overwritten"):
        jf.save(tmp_path, field, overwrite=True)
    with unchecked(), pytest.raises(TypeError, match="must be a field"):
        jf.save(path, field.net, overwrite=True)
    with pytest.raises(OSError, match=r"must have a file that can be written whole.*m\.safetensors"):
        jf.save(path / "below", field)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            jf.save(path, field, overwrite=True)
    assert path.read_bytes() == before and [entry.name for entry in path.parent.iterdir()] == [path.name]
    jf.save(path, field, overwrite=True)
    assert path.read_bytes() == before
    assert Path(path).stat().st_mode & 0o044 == Path(__file__).stat().st_mode & 0o044


def test_weights_of_a_sharded_field_and_of_an_average(tmp_path):
    """What is saved is the whole array, wherever its parts lie."""
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    field = jf.Field(partial(jnp.arange(8.0)), jf.CondOT(), "velocity")
    moved = eqx.tree_at(lambda f: f.net.args[0]["w"], field, jax.device_put(jnp.arange(8.0), sharding))
    jf.save(tmp_path / "a", moved)
    assert same(jf.load(tmp_path / "a", field.net), field)
