"""The command line: what it writes, what it raises, and how it says so."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf
from jflow.cli import main
from jflow.recipes import RECIPES, AbstractRecipe, _run, load, mnist, train

MOONS = ["train", "moons", "--steps", "12", "--batch-size", "16", "--width", "8", "--depth", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def moons(folder):
    """A finished run without classes."""
    main([*MOONS, "--out", str(folder / "moons")])
    return folder / "moons"


@dataclasses.dataclass(frozen=True)
class Labelled(AbstractRecipe):
    """A recipe of one's own: images of 2 x 2 pixels in ten classes."""

    steps: int = 2
    seed: int = 0

    shape = (2, 2, 1)
    num_classes = 10

    def init(self):
        net = jf.nn.MLP(self.shape, width=8, depth=1, num_classes=10, rngs=nnx.Rngs(self.seed))
        return jf.train.init(jf.Field(net, jf.CondOT(), predicts="velocity"), optax.sgd(0.1))

    def loss(self, field, key, example):
        return jf.matching_loss(field, key, example["x"], example["label"])

    def batch(self, step):
        return {"x": np.zeros((4, 2, 2, 1), np.float32), "label": np.arange(4)}

    def evaluate(self, field, sampler, num, seed):
        return []

    def sheet(self, x, label):
        return jf.plot.image_grid(x, label)

    def pictures(self, field, folder):
        pass


@pytest.fixture(scope="module")
def labelled_run(folder):
    train(Labelled(), folder / "labelled")
    return folder / "labelled"


@pytest.fixture
def labelled(labelled_run, monkeypatch):
    """A finished run with classes."""
    monkeypatch.setitem(RECIPES, "labelled", Labelled)
    return labelled_run


@pytest.fixture
def copy(moons, tmp_path):
    """A copy of the finished run, to damage."""
    return Path(shutil.copytree(moons, tmp_path / "copy"))


def files(folder):
    """Every file below a folder, with its content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def message_of(capsys, *argv):
    """The one message of a command that ends with an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.strip() and "Traceback" not in error
    return " ".join(error.replace("│", " ").split())


@pytest.mark.slow
def test_train_fills_the_run_folder(moons):
    for name in ("config.json", "metrics.jsonl", "samples.png", "trajectories.png", "loss.png", "animation.gif"):
        assert (moons / name).stat().st_size > 0, name
    assert (moons / "checkpoints" / "12").is_dir()
    config = json.loads((moons / "config.json").read_text())
    assert config["recipe"] == "moons" and config["options"]["steps"] == 12
    assert not [path.name for path in moons.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(moons, capsys):
    before = files(moons)
    main([*MOONS, "--out", str(moons)])
    assert "is trained already" in capsys.readouterr().out
    assert files(moons) == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(moons, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_run, "_SAVE_EVERY", 5)
    batch = RECIPES["moons"].batch

    def stopping(recipe, step):
        if step == 8:
            raise KeyboardInterrupt
        return batch(recipe, step)

    monkeypatch.setattr(RECIPES["moons"], "pictures", lambda *_: called.append("pictures"))
    called, out = [], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RECIPES["moons"], "batch", stopping)
        with pytest.raises(SystemExit) as stop:
            main([*MOONS, "--out", str(out)])
    assert stop.value.code == 130
    assert not called
    assert f"; {out} holds step 5 of 12, and the same command goes on" in capsys.readouterr().err
    main([*MOONS, "--out", str(out)])
    said = capsys.readouterr().out
    assert "from step 5 to 12" in said and "step 12 of 12, loss" in said
    assert f"{out} is at step 12 of 12, with loss.png, samples.png" in said
    resumed, whole = (jax.tree.leaves(eqx.filter(load(run).field, eqx.is_array)) for run in (out, moons))
    assert all(np.array_equal(a, b) for a, b in zip(resumed, whole, strict=True))
    assert called == ["pictures"]


@pytest.mark.slow
def test_overwrite_begins_anew_and_spares_other_files(copy, monkeypatch):
    monkeypatch.setattr(RECIPES["moons"], "pictures", lambda *_: None)
    (copy / "mine.txt").write_text("kept")
    main([*MOONS[:2], "--steps", "3", *MOONS[4:], "--out", str(copy), "--overwrite"])
    assert [path.name for path in (copy / "checkpoints").iterdir() if path.name.isdecimal()] == ["3"]
    assert json.loads((copy / "config.json").read_text())["options"]["steps"] == 3
    assert (copy / "mine.txt").read_text() == "kept"


@pytest.mark.slow
def test_sample_writes_arrays(labelled, tmp_path):
    out = tmp_path / "draws.npz"
    command = ["sample", str(labelled), "--num", "23", "--steps", "2", "--sampler", "heun_flow", "--seed", "0"]
    main([*command, "--scale", "2", "--out", str(out)])
    with np.load(out) as draws:
        assert sorted(draws) == ["label", "x"]
        x, label = draws["x"], draws["label"]
    assert x.shape == (23, 2, 2, 1) and x.dtype == np.float32 and np.abs(x).max() <= 1
    assert np.array_equal(label, np.arange(23) % 10)
    main([*command, "--scale", "2", "--label", "7", "--out", str(out), "--overwrite"])
    with np.load(out) as draws:
        assert set(draws["label"]) == {7}
        assert np.array_equal(draws["x"][7], x[7]) and not np.array_equal(draws["x"][6], x[6])


@pytest.mark.slow
def test_sample_takes_every_sampler_with_its_options(labelled, tmp_path):
    """The default is ten steps of Heun's; `--eta` and `--shift` reach the sampler that takes them."""
    given, drawn = {"default": [], "heun_flow": ["--sampler", "heun_flow", "--steps", "10"]}, {}
    given |= {"ddim": ["--sampler", "ddim", "--steps", "3"]}
    given |= {"noisy": [*given["ddim"], "--eta", "1"], "shifted": [*given["ddim"], "--shift", "3"]}
    for name, options in given.items():
        main(["sample", str(labelled), "--num", "4", *options, "--out", str(tmp_path / f"{name}.npz")])
        with np.load(tmp_path / f"{name}.npz") as draws:
            drawn[name] = draws["x"]
    assert np.array_equal(drawn["default"], drawn["heun_flow"])
    others = [drawn[name] for name in given if name != "heun_flow"]
    assert not any(np.allclose(a, b, atol=1e-4) for i, a in enumerate(others) for b in others[:i])


@pytest.mark.slow
def test_an_exported_model_draws_the_same(labelled, moons, tmp_path, capsys):
    """A file alone draws what the run draws, bit for bit; in a fresh process in the slow tier."""
    for name, run in {"labelled": labelled, "moons": moons}.items():
        model = tmp_path / f"{name}.safetensors"
        main(["export", str(run), "--out", str(model)])
        for source, out in ((run, "run"), (model, "file")):
            main(["sample", str(source), "--num", "7", "--steps", "2", "--out", str(tmp_path / f"{name}-{out}.npz")])
        with np.load(tmp_path / f"{name}-run.npz") as a, np.load(tmp_path / f"{name}-file.npz") as b:
            assert a.files == b.files and all(np.array_equal(a[key], b[key]) for key in a.files)
        assert "which exists" in message_of(capsys, "export", run, "--out", model)
    assert type(jf.load(tmp_path / "moons.safetensors").net) is jf.nn.MLP


@pytest.mark.slow
def test_what_is_no_exported_model_raises(moons, tmp_path, capsys):
    model, out = tmp_path / "m.safetensors", ["--out", tmp_path / "draws.npz"]
    assert "which has no config.json" in message_of(capsys, "export", tmp_path, "--out", model)
    jf.save(model, load(moons).field)
    assert "must be one that `jflow export` wrote" in message_of(capsys, "sample", model, *out)
    assert "which is no folder" in message_of(capsys, "evaluate", model)
    main(["export", str(moons), "--out", str(model), "--overwrite"])
    blob = bytearray(model.read_bytes())
    blob[len(blob) // 2] ^= 4
    model.write_bytes(blob)
    assert "its checksum is another" in message_of(capsys, "sample", model, *out)
    model.write_text("mine")
    assert "must be in a file as jf.save wrote it" in message_of(capsys, "sample", model, *out)
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist dit"])
def test_a_recipe_exported_draws_the_same_in_a_fresh_process(name, tmp_path, monkeypatch):
    """Networks of the library and of the recipe: the file, and not the run, is all that the process has."""
    recipe = RECIPES[name.split()[0]]
    monkeypatch.setattr(recipe, "pictures", lambda *_: None)
    options = {"steps": 1, "batch_size": 4} | ({"net": "dit"} if "dit" in name else {"channels": (8,)})
    monkeypatch.setattr(
        recipe, "batch", lambda self, step: {"x": np.zeros((4, *self.shape), np.float32), "label": np.arange(4)}
    )
    train(recipe(**options), tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "m.safetensors")])
    code = "import sys; from jflow.cli import main; main(sys.argv[1:])"
    for source in ("run", "m.safetensors"):
        command = ["sample", source, "--num", "2", "--steps", "2", "--scale", "2", "--out", f"{source}.npz"]
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run.npz") as a, np.load(tmp_path / "m.safetensors.npz") as b:
        assert a["x"].any() and np.array_equal(a["x"], b["x"])


def test_sample_draws_a_contact_sheet(labelled, tmp_path):
    from PIL import Image

    main(["sample", str(labelled), "--num", "20", "--out", str(tmp_path / "new" / "sheet.png")])
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert min(image.size) > 100


@pytest.mark.slow
def test_sample_without_classes_writes_no_labels(moons, tmp_path):
    main(["sample", str(moons), "--num", "5", "--out", str(tmp_path / "draws.npz")])
    with np.load(tmp_path / "draws.npz") as draws:
        assert list(draws) == ["x"] and draws["x"].shape == (5, 2)


@pytest.mark.slow
def test_evaluate_writes_and_prints_the_report(moons, capsys):
    capsys.readouterr()
    main(["evaluate", str(moons), "--num", "100", "--steps", "3", "--seed", "2"])
    table = capsys.readouterr().out
    report = json.loads((moons / "report.json").read_text())
    assert report["num"] == 100 and report["seed"] == 2
    assert jf.from_json(report["sampler"]) == jf.samplers.heun_flow(3)
    for bar in report["bars"]:
        assert set(bar) == {"bar", "figure", "target", "pass"}
        assert bar["bar"] in table and bar["target"] in table
        kind, bound = bar["target"].split()
        assert bar["pass"] == (bar["figure"] >= float(bound) if kind == ">=" else bar["figure"] <= float(bound))


def test_a_picture_of_draws_comes_with_each_checkpoint(tmp_path, monkeypatch):
    """The first one long before the end, which has pictures of its own."""
    moons, seen = RECIPES["moons"], []
    monkeypatch.setattr(_run, "_SAVE_EVERY", 4)
    monkeypatch.setattr(moons, "draw", lambda recipe, field, sampler, n, **_: np.zeros((n, 2), np.float32))
    monkeypatch.setattr(moons, "sheet", lambda recipe, x, label: seen.append(x.shape) or jf.plot.loss_curve([1], [1.0]))
    monkeypatch.setattr(
        moons, "pictures", lambda *_: seen.append((tmp_path / "run" / "samples.png").stat().st_size > 0)
    )
    main([*MOONS, "--out", str(tmp_path / "run")])
    assert seen == [(80, 2), (80, 2), True]  # at steps 4 and 8, and at the end


def test_draws_that_diverge_stop_no_training(tmp_path, monkeypatch):
    def diverged(*_, **__):
        raise ValueError("Draws must be finite.")

    monkeypatch.setattr(RECIPES["moons"], "draw", diverged)
    recipe = RECIPES["moons"](steps=12, batch_size=16, width=8, depth=1)
    _run._preview(recipe, types.SimpleNamespace(step=4, ema=None), tmp_path)
    assert not list(tmp_path.iterdir())


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch, capsys):
    """Unless JAX has been told where, by its environment or a script."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        main(["recipes"])
        assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"] is not None
        jax.config.update("jax_compilation_cache_dir", None)
        main(["recipes"])
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jflow" / "jax")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
        main(["recipes"])
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "jflow" / "jax")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_recipes_are_listed(capsys):
    main(["recipes"])
    out = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert name in out and recipe.minutes in out and recipe.__doc__.splitlines()[0] in out


def test_demo_trains_evaluates_and_tells_where(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr("jflow.cli._train", lambda recipe, out, overwrite: called.append((recipe, out)))
    monkeypatch.setattr("jflow.cli._evaluate", lambda *_: called.append("evaluated"))
    main(["demo", "--out", str(tmp_path)])
    assert called == [(RECIPES["digits"](), tmp_path), "evaluated"]
    assert str(tmp_path / "samples.png") in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train", "digits"], ["sample"], ["evaluate"], ["demo"]])
def test_help_shows_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code
    options = [line for line in out.splitlines() if re.match(r"\W*--\w", line)]
    assert len(options) >= 2 and out.count("default:") == len(options)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["train", "nothing"],
            "must be one of moons, digits, mnist, images, moons-meanflow, digits-meanflow, or FILE.py:CLASS for one of "
            "your own. Got",
        ),
        (["train", "moons", "--steps", "many"], "--steps"),
        (["train", "moons", "--steps", "0"], "steps must be at least 1. Got 0"),
        (["train", "moons", "--batch-size", "0"], "batch_size must be at least 1. Got 0"),
        (["train", "moons", "--seed", "-1"], "seed must be at least 0. Got -1"),
        (["train", "moons", "--width", "0"], "Got 0"),
        (["train", "moons", "--ema", "2"], "decay in [0, 1)"),
        (["train", "moons", "--learning-rate", "-1"], "learning_rate must be positive. Got -1"),
        (["train", "digits", "--drop", "1.5"], "in [0, 1]. Got 1.5"),
        (["train", "digits", "--channels", "8", "8", "8", "8", "8"], "Got 8 x 8"),
        (["train", "mnist", "--net", "vae"], "'unet', 'dit'"),
        (["forecast"], "forecast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_training_raises_before_anything_is_written(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in message_of(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--steps", "0"], "steps must be at least 1. Got 0"),
        (["--num", "0"], "num must be at least 1. Got 0"),
        (["--seed", "-1"], "seed must be at least 0. Got -1"),
        (["--sampler", "dimd"], "Got 'dimd': did you mean ddim"),
        (["--sampler", "ddim", "--eta", "2"], "eta"),
        (["--eta", "1"], "heun_flow must have options among grid, shift. Got eta"),
        (["--shift", "0"], "must be a positive number. Got 0"),
        (["--sampler", "heun_edm"], "Got t = 0"),
        (["--label", "10"], "A label must be one of 0 to 9. Got 10"),
        (["--label", "-1"], "A label must be one of 0 to 9. Got -1"),
        (["--scale", "nan"], "A guidance scale must be a finite number. Got nan"),
        (["--out", "draws.txt"], "an .npz or a .png file. Got draws.txt"),
        (["--out", "/dev/null/draws.npz"], "must have a folder that can be written"),
        (["--out", "."], ".npz or a .png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_draws_raise(argv, says, labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in message_of(capsys, "sample", labelled, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_labels_and_scales_need_classes(moons, tmp_path, capsys):
    for option in (["--label", "1"], ["--scale", "2"]):
        assert "a recipe with classes" in message_of(capsys, "sample", moons, *option, "--out", tmp_path / "draws.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_of_draws_is_not_overwritten_unasked(moons, tmp_path, capsys):
    out = tmp_path / "draws.npz"
    out.write_text("mine")
    assert "which exists: pass --overwrite" in message_of(capsys, "sample", moons, "--out", out)
    assert out.read_text() == "mine"


@pytest.mark.slow
def test_a_run_is_not_overwritten_unasked(copy, capsys):
    before = files(copy)
    message = message_of(capsys, *MOONS, "--learning-rate", "0.1", "--out", copy)
    assert "learning_rate was 0.002, is 0.1" in message and "--overwrite" in message
    assert files(copy) == before
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("moons", "digits"))
    assert "holds one of digits, not moons" in message_of(capsys, *MOONS, "--out", copy)


def test_foreign_folders_are_left_alone(tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    for option in ([], ["--overwrite"]):
        assert "which has no config.json" in message_of(capsys, *MOONS, "--out", foreign, *option)
    for command in ("sample", "evaluate"):
        assert "which has no config.json" in message_of(capsys, command, foreign)
    (foreign / "config.json").write_text('{"recipe": 3}')
    assert "whose config.json is something else" in message_of(capsys, *MOONS, "--out", foreign, "--overwrite")
    assert sorted(path.name for path in foreign.iterdir()) == ["config.json", "thesis.tex"]
    assert "which is no folder" in message_of(capsys, "sample", tmp_path / "missing")
    assert "which is a file" in message_of(capsys, *MOONS, "--out", foreign / "thesis.tex")
    assert "must have a folder that can be written" in message_of(
        capsys, *MOONS, "--out", foreign / "thesis.tex" / "run"
    )


@pytest.mark.slow
def test_damaged_runs_are_told_apart(copy, tmp_path, capsys):
    out = ["--out", tmp_path / "draws.npz"]
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"width": 8', '"width": 9'))
    assert "same shapes" in message_of(capsys, "sample", copy, *out)
    (copy / "config.json").write_text(config.replace('"width"', '"height"'))
    assert "version of jflow" in message_of(capsys, "sample", copy, *out)
    (copy / "config.json").write_text(config.replace('"moons"', '"suns"'))
    assert "holds a run of suns" in message_of(capsys, "sample", copy, *out)
    (copy / "config.json").write_text(config[:20])
    assert "whose config.json is something else" in message_of(capsys, "sample", copy, *out)
    (copy / "config.json").write_text(config)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-500])
    assert "damaged" in message_of(capsys, "sample", copy, *out)
    assert "damaged" in message_of(capsys, *MOONS, "--out", copy)
    shutil.rmtree(copy / "checkpoints")
    assert "must have a checkpoint to be drawn from" in message_of(capsys, "evaluate", copy)
    assert not (tmp_path / "draws.npz").exists()


def test_a_truncated_data_file_raises(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JFLOW_DATA_DIR", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for part in ("images-idx3", "labels-idx1"):
        (tmp_path / "mnist" / f"t10k-{part}-ubyte").write_bytes(b"\x00\x00\x08\x03short")
    mnist._data.cache_clear()
    message = message_of(capsys, "train", "mnist", "--out", tmp_path / "run")
    assert "truncated or altered" in message and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_draws_that_diverge_are_reported_not_written(moons, tmp_path, monkeypatch, capsys):
    load = _run.load

    def broken(folder, recipes):
        import jax

        run = load(folder, recipes)
        field = jax.tree_util.tree_map(lambda leaf: leaf * np.nan if leaf.ndim else leaf, run.field)
        return _run.Run(run.folder, run.recipe, field, run.step)

    monkeypatch.setattr("jflow.cli.load", broken)
    assert "5 of 5 diverged" in message_of(capsys, "sample", moons, "--num", "5", "--out", tmp_path / "draws.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_as_a_user_calls_it(tmp_path):
    """In a process of its own: the exit code, and one line on the stream of errors."""
    code = "import sys; from jflow.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sample", "runs/none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("jflow: ") and done.stderr.count("\n") == 1
