"""Recipes: complete runs, from data to a judged model, written to be copied.

A recipe is a frozen dataclass whose fields are its options and whose methods are the run: `init` builds network and
optimiser, `loss` is the loss of one example, `batch` the data, `evaluate` the figures, `pictures` the pictures.
`train` runs one into a folder, `load` reads it back.
"""

from ._folder import check_out, read_config, whole_file
from ._recipe import AbstractRecipe, Bar
from ._run import RECIPES, Run, begin, load, load_model, newest, train
from .digits import Digits
from .digits_meanflow import DigitsMeanflow
from .images import Images
from .mnist import Mnist
from .moons import Moons
from .moons_meanflow import MoonsMeanflow

__all__ = [
    "RECIPES",
    "AbstractRecipe",
    "Bar",
    "Digits",
    "DigitsMeanflow",
    "Images",
    "Mnist",
    "Moons",
    "MoonsMeanflow",
    "Run",
    "begin",
    "check_out",
    "load",
    "load_model",
    "newest",
    "read_config",
    "train",
    "whole_file",
]
