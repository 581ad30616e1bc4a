"""The default sampler of a field."""

import functools as ft
from typing import Any

from ._clock import RatioClock
from ._field import AbstractField
from ._grid import EasedGrid
from ._kinds import check_kinds
from ._path import AbstractAffinePath
from ._sampler import AdaptiveSteps, FixedSteps, Sampler
from ._solver import Adams
from ._validate import check_count


def recommended(field: AbstractField, nfe: int = 32, args: Any = None) -> Sampler:
    """The default sampler of a field at a number of network evaluations: that of `sample`, `decode` and `generate`.

    A field or its path may define another one, as flow maps and exact worlds have. Along affine paths it is an Adams
    method in the ratio clock with one evaluation a step, on a grid that is eased towards the data. Its order grows with
    the number of steps, and is lower under guidance, which makes a field sharp: the rules of docs/which_sampler.md for
    networks. A guided field takes `nfe // evaluations` steps.

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
    check_kinds(recommended, locals())
    check_count(nfe=nfe)
    cost = field.evaluations(args, 0.5)
    cost = cost if isinstance(cost, int) else 2  # guidance on an interval of times
    if nfe < cost:
        raise ValueError(f"nfe must be enough for one step, which costs {cost} evaluations here. Got nfe = {nfe}.")
    for own in (field.recommended(nfe, args), field.path.recommended(field, nfe, args)):
        if own is not None:
            return own
    if not isinstance(field.path, AbstractAffinePath):
        return AdaptiveSteps()
    n = nfe // cost
    if cost > 1:
        return _adams(n, 2, False, 1.5) if n < 12 else _adams(n, 3, True, 1.5)
    order = next(order for order, least in ((5, 24), (4, 16), (3, 8), (2, 0)) if n >= least)
    return _adams(n, order, True, 1.3 if order == 2 else 1.5)


@ft.lru_cache(256)  # a verb without a sampler asks at each call; it holds no array
def _adams(n: int, order: int, corrector: bool, last: float) -> FixedSteps:
    return FixedSteps(EasedGrid(n, 1.0, last), Adams(order, corrector=corrector), clock=RatioClock(), end="stop")
