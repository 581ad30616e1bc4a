"""Paths of a table of betas: exact at the table's times, smooth in between; DDPM's and DDIM's own recursions."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, mixture, refuses, within
from solver_laws import data_prediction

import jflow as jf

TABLES = {
    "DDPM": np.linspace(1e-4, 0.02, 1000),
    "Stable Diffusion": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "rough": np.array([0.02, 0.3, 0.05, 0.6, 0.6, 0.9, 0.2, 0.8]),
}


def bars_of(name):
    return np.cumprod(1 - TABLES[name])


def table_times(name):
    n = len(TABLES[name])
    return 1 - (np.arange(n) + 1) / n


@pytest.mark.parametrize("name", TABLES)
def test_it_is_the_table_at_its_times(name, x64):
    bars, times = bars_of(name), jnp.asarray(table_times(name))
    for path in (jf.TablePath(TABLES[name]), jf.TablePath.from_alphas_cumprod(bars)):
        alpha, sigma = (jax.jit(jax.vmap(f))(times) for f in (path.alpha, path.sigma))
        np.testing.assert_allclose(alpha, np.sqrt(bars), rtol=1e-11)
        np.testing.assert_allclose(sigma, np.sqrt(1 - bars), rtol=1e-11)
    assert path.alpha(1.0) == 1 and path.sigma(1.0) == 0 and path.ends_at_data and not path.starts_at_noise


def test_the_noise_of_stable_diffusion():
    """k-diffusion's `sigma_max` and `sigma_min` of these networks."""
    path = jf.TablePath(TABLES["Stable Diffusion"])
    levels = [float(path.sigma(t) / path.alpha(t)) for t in (0.0, 1 - 1 / 1000)]
    np.testing.assert_allclose(levels, [14.6146, 0.0292], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_it_is_smooth_and_its_log_snr_increases(name, x64):
    """Derivatives are those of alpha and sigma, and continuous at the table's times; the inverse is one."""
    path, n = jf.TablePath(TABLES[name]), len(TABLES[name])
    times = np.linspace(0.001, 0.999, 1501)

    def at(t):
        row = path.velocity_row(t)
        pairs = (
            (path.alpha_dot(t), jax.grad(path.alpha)(t)),
            (path.sigma_sigma_dot(t), jax.grad(lambda s: path.sigma(s) ** 2 / 2)(t)),
            (row[1] / row[0], path.alpha_dot(t)),
            (row[2] / row[0], jax.grad(path.sigma)(t)),
            (path.log_snr_inverse(path.log_snr(t)), t),
        )
        return pairs, path.log_snr(t)

    pairs, log_snr = jax.jit(jax.vmap(at))(jnp.asarray(times))
    for value, truth in pairs:
        np.testing.assert_allclose(value, truth, rtol=1e-8, atol=1e-11)
    assert (np.diff(log_snr) > 0).all()
    inner = jnp.asarray(table_times(name)[:-1])
    left, right = (jax.vmap(path.alpha_dot)(inner + side * 1e-9) for side in (-1, 1))
    np.testing.assert_allclose(left, right, rtol=1e-4 / 1000 * n + 1e-6)
    assert (left > 0).all()


def test_single_precision_is_finite_to_the_ends():
    path = jf.TablePath(TABLES["DDPM"])
    times = jnp.asarray([0.0, 1e-4, 0.5, 1 - 1e-3, 1 - 1e-4, 1 - 2.0**-20, 1.0])
    every = jax.jit(jax.vmap(lambda t: (path.alpha(t), path.sigma(t), *path.velocity_row(t), path.sigma_w(t))))
    for t in (times, times.astype("bfloat16")):
        for value in every(t):
            assert np.isfinite(value.astype(float)).all() and value.dtype == t.dtype
    with jax.enable_x64(True):
        exact = jax.jit(jax.vmap(jf.TablePath(TABLES["DDPM"]).sigma))(times[:-1].astype(float))
    np.testing.assert_allclose(every(times)[1][:-1], exact, rtol=2e-4)


# ------------------------------------------------------------------------------------------------------- recursions


def textbook(bars, entries, x, eta, normals):
    """Song et al. 2021 (arXiv:2010.02502), equations 12 and 16, on `alphas_cumprod` alone; at `eta = 1` it is Ho et al.
    2020, algorithm 2, with the posterior's variance. The last step is to `alphas_cumprod = 1`.
    """
    for k, before, z in zip(entries, [*entries[1:], None], normals, strict=True):
        bar, bar_before = bars[k], 1.0 if before is None else bars[before]
        data = data_prediction(np.sqrt(bar), np.sqrt(1 - bar), x)
        noise = (x - np.sqrt(bar) * data) / np.sqrt(1 - bar)
        std = eta * np.sqrt((1 - bar_before) / (1 - bar)) * np.sqrt(1 - bar / bar_before)
        x = np.sqrt(bar_before) * data + np.sqrt(1 - bar_before - std**2) * noise + std * z
    return x


def entries_of(total, n, spacing):
    """diffusers' `set_timesteps`."""
    if spacing == "linspace":
        return np.linspace(0, total - 1, n).round()[::-1].astype(int)
    if spacing == "leading":
        return (np.arange(0, n) * (total // n)).round()[::-1].astype(int)
    return np.round(np.arange(total, 0, -total / n)).astype(int) - 1


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_and_ddpm_are_the_recursions_on_the_table(spacing, x64):
    n, start = 12, np.array([0.4, -1.1, 2.0])
    normals = np.random.default_rng(0).normal(size=n)
    for name in ("DDPM", "Stable Diffusion"):
        path, bars = jf.TablePath(TABLES[name]), bars_of(name)
        field, times = mixture(path, *MIX1, predicts="noise"), jf.samplers.table_times(path, n, spacing)
        entries = entries_of(1000, n, spacing)
        np.testing.assert_allclose(times, np.append(1 - (entries + 1) / 1000, 1.0), rtol=1e-15)
        noise = jf.Recorded(jnp.asarray(normals)[:, None])

        @jax.jit
        def every(x, eta, field=field, times=times, noise=noise):
            noisy, still = jf.samplers.ddim(n, eta=eta, grid=times), jf.samplers.ddim(n, grid=times)
            draws = jax.vmap(lambda x: jf.decode(field, x[None], noisy, brownian=noise))(x)
            return draws, jax.vmap(lambda x: jf.decode(field, x[None], still))(x)

        out, ode = every(jnp.asarray(start), jnp.asarray(1.0))
        assert (out.nfe == n).all() and (ode.nfe == n).all() and (out.status == 0).all()
        for got, eta in ((out, 1.0), (ode, 0.0)):
            truth = textbook(bars, entries, start, eta, normals)
            np.testing.assert_allclose(got.x[:, 0], truth, rtol=1e-10, atol=1e-10, err_msg=f"{name} {eta}")


def test_every_entry_of_the_table_is_a_step_of_the_uniform_grid(x64):
    path = jf.TablePath(TABLES["DDPM"])
    for n in (1, 8, 1000):
        np.testing.assert_allclose(jf.samplers.table_times(path, n, "trailing"), np.linspace(0, 1, n + 1), atol=1e-15)
    assert jf.samplers.table_times(path, 10, offset=1)[-2] == 1 - 2 / 1000


@pytest.mark.slow
def test_it_trains_and_samples_as_other_paths():
    world = jf.distributions.Gaussian(jnp.array([1.0, -0.5]), std=0.5)
    field = world.field(jf.TablePath(TABLES["DDPM"]), predicts="noise")
    assert jnp.isfinite(jf.matching_loss(field, jr.key(0), jnp.ones(2)))
    x = jf.generate(field, jr.key(0), 2000, (2,), jf.samplers.ddpm(50)).x
    assert within(x.mean(0), [1.0, -0.5], 0.5 / np.sqrt(2000), 5) and abs(x.std() - 0.9).max() < 0.1
    assert not jax.tree.leaves(jf.trainable(field.path))[0]
    jax.jit(lambda f, k: jf.sample(f, k, (2,), jf.UniformGrid(4)).x)(field, jr.key(0))


def test_bad_tables_raise():
    good = TABLES["DDPM"]
    path = jf.TablePath(good)
    bars = bars_of("DDPM")
    decreases = "above 0 and below 1, so that alphas_cumprod decreases"
    for call, fragment in [
        (lambda: jf.TablePath(np.append(good, 1.0)), decreases),
        (lambda: jf.TablePath(np.append(good, 0.0)), decreases),
        (lambda: jf.TablePath(np.append(good, -0.1)), f"{decreases}.*Got betas from -0.1 to 0.02"),
        (lambda: jf.TablePath(np.append(good, np.nan)), decreases),
        (lambda: jf.TablePath(good[:100]), r"must reach noise, 0\.01.* at the end"),
        (lambda: jf.TablePath(0.5), "a vector of at least two known numbers"),
        (lambda: jf.TablePath([0.5]), "a vector of at least two known numbers"),
        (lambda: jax.jit(lambda b: jf.TablePath(b).alpha(0.5))(good), "build the path outside jax.jit"),
        (lambda: jf.TablePath.from_alphas_cumprod(bars[::-1]), f"{decreases}.*turn a table that runs from noise"),
        (lambda: jf.TablePath.from_alphas_cumprod([0.9, 0.9, 0.001]), decreases),
        (lambda: jf.TablePath.from_alphas_cumprod([0.9, 0.5, 0.0]), "leave out an end of alphas_cumprod = 0"),
        (lambda: jf.samplers.table_times(path, 10, "even"), r"spacing must be one of 'leading', .* Got 'even'"),
        (lambda: jf.samplers.table_times(path, 1001), "must have 1001 of the 1000 entries.*at most 1000 steps"),
        (lambda: jf.samplers.table_times(path, 1000, offset=1), "Got 1000 down to 1.*a smaller offset"),
        (lambda: jf.samplers.table_times(path, 0), "n must be an integer of at least 1"),
        (lambda: jf.samplers.ddim(20, grid=jf.samplers.table_times(path, 10)), "Got one of 10 steps"),
    ]:
        refuses(call, fragment)
