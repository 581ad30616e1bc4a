"""How a solver lends its memory to a guided field."""

from typing import Any, NamedTuple

from jaxtyping import PyTree


class Remembering(NamedTuple):
    """In the place of a guidance scale: guide by `change + momentum * previous`, and give that sum back too."""

    scale: Any
    momentum: Any
    previous: PyTree


class Remembered(NamedTuple):
    """What a guided field then answers: the prediction, and the running change."""

    value: Any
    change: PyTree
