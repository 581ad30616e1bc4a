"""The default sampler of a field."""

from typing import Any

from ._clock import RatioClock
from ._field import AbstractField, check_field
from ._grid import EasedGrid
from ._path import AbstractAffinePath
from ._sampler import AdaptiveSteps, FixedSteps, Sampler
from ._solver import Adams
from ._validate import check_count


def recommended(field: AbstractField, nfe: int = 32, args: Any = None) -> Sampler:
    """The default sampler of a field at a number of network evaluations: that of `sample`, `decode` and `generate`.

    A field or its path may have one of its own. Along affine paths it is an Adams predictor-corrector in the ratio
    clock with one call a step, whose order grows with the number of steps, on the grid that is eased at both ends: the
    rule
    of docs/which_sampler.md for images and other sharp fields. A guided field takes `nfe // evaluations` steps.

    Args:
        field: The field.
        nfe: Network evaluations of one sample, as `Solution.nfe` counts them.
        args: The condition: with a guidance scale each step costs more.

    Returns:
        A sampler with an explicit end.

    Raises `ValueError` for `nfe < 1`, or fewer than a step costs.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    assert jf.sample(field, jr.key(0), (2,), jf.recommended(field, 10)).nfe == 10
    ```
    """
    check_field(field)
    check_count(nfe=nfe)
    for own in (field.recommended(nfe, args), field.path.recommended(field, nfe, args)):
        if own is not None:
            return own
    if not isinstance(field.path, AbstractAffinePath):
        return AdaptiveSteps()
    cost = field.evaluations(args, 0.5)
    steps = nfe // int(cost) if isinstance(cost, int) else nfe // 2
    if steps < 1:
        raise ValueError(f"nfe must be enough for one step, which costs {cost} evaluations here. Got nfe = {nfe}.")
    return _adams(steps, field)


def _adams(n: int, field: AbstractField) -> FixedSteps:
    order = 2 if n < 8 else 3 if n < 16 else 4
    end = "denoise" if not field.path.ends_at_data else "stop"
    return FixedSteps(EasedGrid(n), Adams(order, corrector=True), clock=RatioClock(), end=end)
