"""A recipe's run: trained into a folder, loaded from it, judged."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

import jflow as jf
from jflow.train._model import read_model, write_model

from ._folder import LOSS, REPORT, SAMPLES, claim, read_config, whole_file, write_json
from ._recipe import AbstractRecipe, Bar, check_draws, check_memory
from .digits import Digits
from .digits_meanflow import DigitsMeanflow
from .images import Images
from .mnist import Mnist
from .moons import Moons
from .moons_meanflow import MoonsMeanflow

RECIPES: dict[str, type[AbstractRecipe]] = {
    recipe.name(): recipe for recipe in (Moons, Digits, Mnist, Images, MoonsMeanflow, DigitsMeanflow)
}

_SAVE_EVERY, _LOG_EVERY, _TELL_EVERY = 500, 10, 100
_SHEET = 80  # draws of a picture


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder holds it."""

    folder: Path
    recipe: AbstractRecipe
    field: Any
    """The field with the averaged parameters of the newest checkpoint."""
    step: int
    """The step of that checkpoint; the run is finished where it is `recipe.steps`."""

    @property
    def finished(self) -> bool:
        """Whether every step was taken."""
        return self.step >= self.recipe.steps

    def draw(self, sampler: Any, n: int, **options: Any) -> Float[np.ndarray, " n ..."]:
        """`n` draws; see `AbstractRecipe.draw`."""
        return self.recipe.draw(self.field, sampler, n, **options)

    def report(self, sampler: Any, num: int, seed: int = 0) -> dict[str, Any]:
        """Judges the run by `num` draws; writes and returns `report.json`, whose `sampler` is for `jf.from_json`."""
        check_draws(self.recipe, num, seed)
        start, text = time.monotonic(), jf.to_json(sampler)
        bars: list[Bar] = self.recipe.evaluate(self.field, sampler, num, seed)
        report = {
            "recipe": read_config(self.folder)[0],
            "step": self.step,
            "sampler": text,
            "num": num,
            "seed": seed,
            "seconds": round(time.monotonic() - start, 1),
            "bars": [bar.as_json() for bar in bars],
        }
        write_json(self.folder / REPORT, report)
        return report

    def export(self, path: Path) -> None:
        """Writes the field and the recipe's options into a file, over what it may hold; see `jf.save`."""
        name, options = read_config(self.folder)
        recipe = json.dumps({"recipe": name, "options": options, "step": self.step})
        write_model(path, self.field, {"recipe": recipe}, overwrite=True)


def begin(recipe: AbstractRecipe, folder: Path, *, overwrite: bool = False) -> int:
    """Makes `folder` the recipe's own; returns the step of the newest checkpoint in it, 0 without any.

    Raises `ValueError` for options that do not go together and data that cannot be read, before anything is written,
    and where the folder holds something else, or another run that is not to be overwritten.
    """
    state = jax.eval_shape(recipe.init)  # of a network that no memory holds, too
    check_memory("The network and its optimiser", sum(leaf.size for leaf in jax.tree.leaves(state)))
    recipe.batch(0)
    claim(folder, recipe.name(), recipe, overwrite=overwrite)
    return newest(folder)


def train(recipe: AbstractRecipe, folder: Path, *, overwrite: bool = False) -> Run:
    """Trains the recipe into `folder`, from where an interrupted run of it stopped, and draws its pictures.

    Until the last step `samples.png` shows draws of the newest checkpoint. A finished run is loaded. Raises as `begin`
    does, and where the run is damaged. A line every 100 steps takes the place of the progress bar where no terminal is.
    """
    begin(recipe, folder, overwrite=overwrite)
    terminal = sys.stderr.isatty()
    every = [(_SAVE_EVERY, lambda state, line: _preview(recipe, state, folder))]
    if not terminal:
        every.append((_TELL_EVERY, lambda state, line: _tell(recipe, line)))
    state, losses = jf.train.fit(
        recipe.init(), recipe.loss, recipe.batch, steps=recipe.steps, key=_key(recipe), run_dir=folder,
        save_every=_SAVE_EVERY, log_every=_LOG_EVERY, progress=terminal, every=every,
    )  # fmt: skip
    run = Run(folder, recipe, state.ema, int(state.step))
    if len(losses) or not (folder / LOSS).exists():
        recipe.pictures(run.field, folder)
        _loss_picture(folder)  # the last: where it is, all are
    return run


def load(folder: str | Path, recipes: dict[str, type[AbstractRecipe]] = RECIPES) -> Run:
    """The run in `folder`, as its newest checkpoint has it; `recipes` are those that it may be of.

    Raises `ValueError` where `folder` is not that of a run, or the checkpoint cannot be read.
    """
    folder = Path(folder)
    name, options = read_config(folder)
    recipe = _recipe(folder, name, options, recipes)
    if not newest(folder):
        raise ValueError(
            f"A run must have a checkpoint to be drawn from, the first after {_SAVE_EVERY} steps. Got {folder}, which "
            "has none yet: go on with it by the command that began it."
        )
    state = jf.train.restore(folder / "checkpoints", recipe.init(), key=_key(recipe))
    return Run(folder, recipe, state.ema, int(state.step))


def load_model(path: str | Path, recipes: dict[str, type[AbstractRecipe]] = RECIPES) -> Run:
    """What a run exported into a file; raises `ValueError` where it is damaged, or holds no model of a recipe."""
    about, _ = read_model(path)
    if "recipe" not in about:
        raise ValueError(
            f"A model must be one that `jflow export` wrote, since its events must have a shape. Got {path}: in "
            "Python, jf.generate(jf.load(path), key, n, shape) draws from it."
        )
    made = json.loads(about["recipe"])
    recipe = _recipe(path, made["recipe"], made["options"], recipes)
    net = jax.eval_shape(recipe.init).field.net
    return Run(Path(path), recipe, jf.load(path, net), made["step"])


def _recipe(where: Any, name: str, options: dict[str, Any], recipes: dict[str, type[AbstractRecipe]]) -> Any:
    """The recipe that a run was made by."""
    if name not in recipes:
        raise ValueError(
            f"A recipe must be one of {', '.join(recipes)}. Got {where}, which holds a run of {name}: choose "
            "another, or for a recipe in a file of your own pass --recipe FILE.py:CLASS."
        )
    try:
        return recipes[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A run must be read by the version of jflow that wrote it. Got {where}, which holds other options "
            f"({error}): put back the file that it wrote, or train anew."
        ) from error


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(entry.name) for entry in (folder / "checkpoints").glob("*") if entry.name.isdecimal()), default=0)


def _key(recipe: AbstractRecipe) -> Key[Array, ""]:
    """The key of training; the other half is for data that are drawn."""
    return jr.split(jr.key(recipe.seed))[0]


def _preview(recipe: AbstractRecipe, state: Any, folder: Path) -> None:
    """The picture of draws as it is so far; the last one is the recipe's own."""
    if state.step >= recipe.steps:
        return
    label = None if recipe.num_classes is None else np.arange(_SHEET) % recipe.num_classes
    try:
        x = recipe.draw(state.ema, recipe.sampler(), _SHEET, seed=recipe.seed, label=label)
    except ValueError:  # they diverge, which early draws may
        return
    with whole_file(folder / SAMPLES) as path:
        recipe.sheet(x, label).savefig(path)


def _tell(recipe: AbstractRecipe, line: dict[str, Any]) -> None:
    print(f"step {line['step']} of {recipe.steps}, loss {line['loss']:.4g}", flush=True)


def _loss_picture(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figure = jf.plot.loss_curve([line["step"] for line in lines], [line["loss"] for line in lines])
    with whole_file(folder / LOSS) as path:
        figure.savefig(path)
