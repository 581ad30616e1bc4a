"""The command line: `jflow train`, `sample`, `evaluate`, `export`, `data show`, `recipes`, `demo`."""

import dataclasses
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from . import __version__
from ._extra import from_extra
from .recipes import (
    RECIPES,
    AbstractRecipe,
    Digits,
    DigitsMeanflow,
    Images,
    Mnist,
    Moons,
    MoonsMeanflow,
    Run,
    begin,
    check_out,
    load,
    load_model,
    newest,
    whole_file,
)
from .recipes import images as _images
from .recipes import train as train_run


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How to draw."""

    sampler: str | None = None
    """The sampler, a name of jflow.samplers as heun_flow, ddim or dpmpp_2m; by default the recipe's own."""
    steps: int | None = None
    """Its steps; by default the recipe's own number, 10 for one by name."""
    eta: float | None = None
    """How much noise it adds, for a sampler that takes an eta, as ddim: 0 none, 1 that of the reverse SDE."""
    shift: float | None = None
    """The shift of its times: above 1 they move towards the noise; by default none."""
    seed: int = 0
    """Draw i depends on this seed and on i."""

    def of(self, run: Run) -> Any:
        """The sampler of a run."""
        return run.recipe.sampler(self.sampler, self.steps, eta=self.eta, shift=self.shift)


_DRAWING = Drawing()


def train(
    recipe: Moons | Digits | Mnist | Images | MoonsMeanflow | DigitsMeanflow,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train a recipe into a run folder, or go on with a run that was interrupted.

    `jflow train FILE.py:CLASS` trains a recipe in a file of your own.

    Args:
        recipe: What to train.
        out: The run folder; runs/RECIPE by default.
        overwrite: Begin anew, whatever run the folder holds.
    """
    _train(recipe, out, overwrite)


def sample(
    run: Path,
    /,
    *,
    drawing: Drawing = _DRAWING,
    num: int = 100,
    scale: float = 1.0,
    label: int | None = None,
    out: Path = Path("draws.npz"),
    overwrite: bool = False,
    recipe: str | None = None,
) -> None:
    """Draw from a run, or from a model that was exported.

    Args:
        run: The run folder, or the file.
        num: How many to draw.
        scale: Guidance scale: 0 unconditional, 1 conditional, above 1 guided, which calls the network twice.
        label: The class of all draws; by default the classes in turn.
        out: Where to: arrays x (n, ...), images in [-1, 1], and label (n,) into .npz, a contact sheet with labels
            into .png.
        overwrite: Overwrite that file.
        recipe: FILE.py:CLASS, for a run of a recipe in a file of your own.
    """
    if out.suffix not in (".npz", ".png"):
        raise ValueError(f"Draws must be written into an .npz or a .png file. Got {out}.")
    check_out(out, overwrite=overwrite)
    loaded = load_model(run, _recipes(recipe)) if run.is_file() else _load(run, recipe)
    sampler, classes = drawing.of(loaded), loaded.recipe.num_classes
    x = loaded.draw(sampler, num, seed=drawing.seed, label=label, scale=scale)
    turn = None if classes is None else np.arange(num, dtype=np.int32) % classes
    labels = turn if label is None else np.full(num, label, np.int32)
    with whole_file(out) as path:
        if out.suffix == ".png":
            loaded.recipe.sheet(x, labels).savefig(path)
        else:
            arrays: dict[str, Any] = {"x": x} if labels is None else {"x": x, "label": labels}
            np.savez(path, **arrays)
    print(f"{num} draws: {out}")


def evaluate(run: Path, /, *, drawing: Drawing = _DRAWING, num: int | None = None, recipe: str | None = None) -> None:
    """Judge a run: report.json in its folder, printed as a table.

    Args:
        run: The run folder.
        num: How many draws are judged; by default the recipe's own number.
        recipe: FILE.py:CLASS, for a run of a recipe in a file of your own.
    """
    _evaluate(_load(run, recipe), drawing, num)


def export(
    run: Path, /, *, out: Path = Path("model.safetensors"), overwrite: bool = False, recipe: str | None = None
) -> None:
    """Write the model of a run into one file, which `jflow sample` and `jf.load` read.

    Args:
        run: The run folder.
        out: The file.
        overwrite: Overwrite that file.
        recipe: FILE.py:CLASS, for a run of a recipe in a file of your own.
    """
    check_out(out, overwrite=overwrite)
    _load(run, recipe).export(out)
    print(out)


def show(
    path: Path,
    /,
    *,
    size: int = 64,
    grey: bool = False,
    num: int = 80,
    seed: int = 0,
    out: Path = Path("data.png"),
    overwrite: bool = False,
) -> None:
    """Show what a folder of pictures, or another source of `jflow train images`, holds.

    Args:
        path: What --data of `jflow train images` takes.
        size: The side of the pictures on the contact sheet; `jflow train images` has its own --size.
        grey: Leave out colours.
        num: How many pictures are on the contact sheet.
        seed: Which pictures are on it.
        out: Where to, a .png file.
        overwrite: Overwrite that file.
    """
    from .plot import image_grid

    check_out(out, overwrite=overwrite)
    parts = _images.read(path, size, grey)
    for data in parts:
        counts = [("pictures", str(len(data)))]
        if data.label is not None:
            names = data.classes or range(data.num_classes or 0)
            each = np.bincount(data.label, minlength=data.num_classes or 0)
            counts += [(f"class {c}: {name}", str(n)) for c, (name, n) in enumerate(zip(names, each, strict=True))]
        _print_table((data.name, f"shown as {size} x {size} x {data.x.shape[3]}"), counts)
        x = data.x.reshape(-1, data.x.shape[3])
        mean, std = x.mean(0) / 127.5 - 1, x.std(0) / 127.5
        print(f"mean {_channels(mean)}, standard deviation {_channels(std)}, of values in [-1, 1]\n")
    data = parts[0]
    some = np.random.default_rng(seed).permutation(len(data))[:num]
    label = None if data.label is None else data.label[some]
    with whole_file(out) as partial:
        names = None if label is None else [data.classes[c] if data.classes else str(c) for c in label]
        image_grid(data[some]["x"], names, ncols=min(10, len(some))).savefig(partial)
    print(out)


def recipes() -> None:
    """List the recipes."""
    rows = [(name, recipe.minutes, (recipe.__doc__ or "").splitlines()[0]) for name, recipe in RECIPES.items()]
    _print_table(("recipe", "minutes on 2 cores", "what it is"), rows)


def demo(*, out: Path = Path("runs/digits"), overwrite: bool = False) -> None:
    """Train on handwritten digits, draw, judge the draws, show pictures.

    Args:
        out: The run folder.
        overwrite: Begin anew, whatever run the folder holds.
    """
    run = _train(Digits(), out, overwrite)
    _evaluate(run, _DRAWING, None)
    for name in ("samples.png", "animation.gif", "loss.png", "report.json"):
        print(out / name)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point; errors of use are one message and exit code 2."""
    _keep_programs()
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {f.__name__: f for f in (train, sample, evaluate, export, recipes, demo)} | {"data show": show}
    if argv[:2] == ["data", "show"]:
        argv[:2] = ["data show"]
    if argv == ["--version"]:
        print(f"jflow {__version__}")
        return
    try:
        with from_extra("The command line"):
            import tyro
    except ImportError as error:
        _stop(error, code=0 if _list_commands(argv, commands) else 2)
    conf = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
    try:
        if argv[:1] == ["train"] and argv[1:2] and argv[1] not in RECIPES and not argv[1].startswith("-"):
            commands["train"] = _training(_own_recipe(argv.pop(1)))
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="jflow",
                description="Flow and diffusion generative models.",
                args=argv,
                config=(*conf, tyro.conf.FlagCreatePairsOff),
            )
    except (ValueError, OSError, ImportError, OverflowError, MemoryError, jax.errors.JaxRuntimeError) as error:
        _stop(error)
    except KeyboardInterrupt as stop:
        print(f"jflow: interrupted{stop}", file=sys.stderr)
        raise SystemExit(130) from None


def _own_recipe(name: str) -> type[AbstractRecipe]:
    """The recipe `FILE.py:CLASS`, whose file is run."""
    file, _, kind = name.rpartition(":")
    if not file.endswith(".py"):
        raise ValueError(
            f"A recipe must be one of {', '.join(RECIPES)}, or FILE.py:CLASS for one of your own. Got {name!r}; "
            "`jflow recipes` lists them."
        )
    if not Path(file).is_file():
        raise ValueError(f"A recipe must be in a file that exists. Got {name!r}: no such file.")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None  # of a file of Python
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # where types written as text are looked up
    spec.loader.exec_module(module)
    recipe = getattr(module, kind, None)
    if not (isinstance(recipe, type) and issubclass(recipe, AbstractRecipe) and dataclasses.is_dataclass(recipe)):
        raise ValueError(
            f"A recipe must be a dataclass that is a jflow.recipes.AbstractRecipe. Got {kind!r} of {file}, which is "
            f"{'missing' if recipe is None else 'something else'}."
        )
    return recipe


def _training(kind: type[AbstractRecipe]) -> Any:
    """`train` for this recipe alone."""

    def command(recipe: kind, *, out: Path | None = None, overwrite: bool = False) -> None:  # pyright: ignore
        _train(recipe, out, overwrite)

    command.__doc__ = train.__doc__
    return command


def _show_warning(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
    sys.stderr.write(f"jflow: {message}\n")


def _keep_programs() -> None:
    """Compiled programs stay on disk, in a folder of the user's, unless JAX has a folder already."""
    option = "jax_compilation_cache_dir"
    if getattr(jax.config, option) is None:  # else it is that of JAX_COMPILATION_CACHE_DIR, or of a script
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update(option, str(Path(caches, "jflow", "jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small ones are many


def _stop(error: Exception, code: int = 2) -> NoReturn:
    """Ends the process with one line on the error."""
    lines = str(error).splitlines() or [type(error).__name__]
    words = lines[0] if isinstance(error, jax.errors.JaxRuntimeError) else " ".join(lines)
    if "Out of memory" in words or isinstance(error, MemoryError):
        words = f"Memory must hold a step and what is drawn: take a smaller batch or network, or fewer. Got {words}"
    missing = isinstance(error, ImportError) and "[train]" not in words
    # written at once, so that no thread's words come between the line and its end
    sys.stderr.write(f"jflow: {words}{': pip install jflow[train]' if missing else ''}\n")
    raise SystemExit(code) from None


def _list_commands(argv: Sequence[str], commands: dict[str, Any]) -> bool:
    """Lists the commands for `--help`, without the package that shows their options."""
    if not {"-h", "--help"} & {*argv}:
        return False
    print("usage: jflow COMMAND [OPTIONS]\n")
    _print_table(("command", "what it does"), [(n, (f.__doc__ or "").splitlines()[0]) for n, f in commands.items()])
    return True


def _train(recipe: Any, out: Path | None, overwrite: bool) -> Run:
    folder = Path("runs", recipe.name()) if out is None else out
    step = begin(recipe, folder, overwrite=overwrite)
    if step < recipe.steps:
        print(f"Training in {folder}, from step {step} to {recipe.steps}", flush=True)
    else:
        print(f"{folder} is trained already; --overwrite begins it anew", flush=True)
    try:
        run = train_run(recipe, folder)
    except KeyboardInterrupt:
        kept = f"{folder} holds step {newest(folder)} of {recipe.steps}"
        raise KeyboardInterrupt(f"; {kept}, and the same command goes on from there") from None
    made = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".gif")))
    print(f"{folder} is at step {run.step} of {recipe.steps}, with {made}: `jflow sample {folder}` draws", flush=True)
    return run


def _recipes(own: str | None) -> dict[str, type[AbstractRecipe]]:
    """The recipes that a run may be of."""
    if own is None:
        return RECIPES
    recipe = _own_recipe(own)
    return {**RECIPES, recipe.name(): recipe}


def _load(folder: Path, own: str | None) -> Run:
    run = load(folder, _recipes(own))
    if not run.finished:
        print(f"jflow: {folder} is at step {run.step} of {run.recipe.steps}", file=sys.stderr)
    return run


def _evaluate(run: Run, drawing: Drawing, num: int | None) -> None:
    report = run.report(drawing.of(run), run.recipe.draws if num is None else num, drawing.seed)
    words = {True: "yes", False: "NO", None: ""}
    rows = [(b["bar"], f"{b['figure']:.4g}", b["target"] or "", words[b["pass"]]) for b in report["bars"]]
    _print_table(("what is judged", "figure", "target", "passed"), rows)
    if any(b["pass"] is False for b in report["bars"]):
        print("NO: the draws miss this target. Train longer, or draw with more --steps; the command has not failed.")


def _channels(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
