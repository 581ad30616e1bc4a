"""The page on samplers: its names exist, and its table is what it says."""

import re
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1

import jflow as jf

PAGE = Path(__file__).parent.parent / "docs" / "which_sampler.md"
WEIGHTS, MEANS, STDS = MIX1


@pytest.mark.slow
def test_the_middle_column_errs_a_quarter_of_heun_at_equal_calls():
    """Ten calls on an exact mixture: 8e-4 beside 4e-3 (Heun) and 1e-1 (Euler) in the benchmark."""
    field = jf.distributions.GaussianMixture(MEANS, stds=STDS, weights=WEIGHTS).field(jf.CondOT())
    starts = jr.normal(jr.key(0), (64, 1))

    @eqx.filter_jit
    def carried(grid, solver):
        sampler = jf.FixedSteps(grid, solver, clock=jf.RatioClock())
        sol = jax.vmap(lambda x: jf.decode(field, x, sampler))(starts)
        return sol.x, sol.nfe[0]

    fine, _ = carried(jf.UniformGrid(200), dfx.Heun())
    error = {}
    for name, grid, solver in (
        ("middle", jf.EasedGrid(10), jf.Adams(5, corrector=True)),
        ("heun", jf.UniformGrid(5), dfx.Heun()),
        ("euler", jf.UniformGrid(10), dfx.Euler()),
    ):
        x, calls = carried(grid, solver)
        assert calls == 10
        error[name] = jnp.median(jnp.abs(x - fine))
    assert error["middle"] < error["heun"] / 4 and error["middle"] < error["euler"] / 50, error


def test_the_recommended_samplers_are_those_of_the_page():
    """The first table, row for row, at the fewest and the most steps of each row."""
    names = {"Adams": jf.Adams, "EasedGrid": jf.EasedGrid}
    rows = re.findall(
        r"^\| (up to|\d+)(?: to| and)? (\d+|more) \|(.*)\|(.*)\|$", PAGE.read_text().split("## By hand")[0], re.M
    )
    assert len(rows) == 5
    plain = jf.Field(lambda t, x, args: x, jf.CondOT(), "velocity")
    guided, args, above = jf.Guided(plain, null=0), jf.Args(1, scale=2.0), [None, None]
    for first, last, *cells in rows:
        above = [cell if "`" in cell else before for cell, before in zip(cells, above, strict=True)]
        for n in (2 if first == "up to" else int(first), 40 if last == "more" else int(last)):
            for cell, got in zip(above, (jf.recommended(plain, n), jf.recommended(guided, 2 * n, args)), strict=True):
                solver, grid = (eval(code, names | {"n": n}) for code in re.findall(r"`([^`]+)`", cell))
                assert repr(got) == repr(jf.FixedSteps(grid, solver, clock=jf.RatioClock(), end="stop")), n


def test_the_names_it_gives_exist():
    text = PAGE.read_text()
    for name in np.unique(re.findall(r"`(?:jf\.|diffrax\.)?([A-Z]\w+)\(", text)):
        assert hasattr(jf, name) or hasattr(dfx, name), name
    found = set(re.findall(r"samplers\.(\w+)", text))
    assert found == {*jf.samplers.names(), "table_times"}
    rows = text.split("## Names from elsewhere")[1].split("\n\n")[2].splitlines()[2:]
    assert len(rows) > 20
    for row in rows:  # each is a function, but for those on `eta` and for what goes around a sampler
        if "`eta` of" not in row and "LangevinCorrector(" not in row:
            assert "`samplers." in row.split(" | ")[-1], row
    verbs = set(re.findall(r"`jf\.([a-z_]+)\(", text))
    assert "recommended" in verbs and all(hasattr(jf, name) for name in verbs), verbs
