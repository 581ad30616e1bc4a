"""What is not installed with the core alone."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def from_extra(what: str) -> Iterator[None]:
    """Imports from the `train` extra; raises `ImportError` that names it where one of its packages is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} must have the packages of the train extra: pip install 'jflow[train]'. Got {error}."
        ) from error
