"""Samplers by name against their textbook recursions, written out in numpy for a mixture of Gaussians."""

import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, PATHS, gaussian, mixture, refuses, schedule
from solver_laws import data_prediction

import jflow as jf

N, NAMES = 6, ("CondOT", "Cosine", "VP", "VE")  # the first two start at alpha = 0
START = np.array([0.4, -1.1, 2.0])
NORMALS = np.asarray(jr.normal(jr.key(0), (N, 3)), float)


def parts(name, times, x, normals=NORMALS):
    """The steps but the last one: `alpha`, `sigma` at both ends, and the normal of the step."""
    for t0, t1, z in zip(times[:-2], times[1:-1], normals, strict=False):
        (a0, s0, *_), (a1, s1, *_) = schedule(name, t0), schedule(name, t1)
        yield a0, s0, a1, s1, z


def last(name, times, x):
    """The data prediction at the last time but one."""
    return data_prediction(*schedule(name, times[-2])[:2], x)


def half(alpha, sigma):
    """Half the log-SNR, k-diffusion's `t = -log(sigma)`; minus infinity at `alpha = 0`."""
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


# ------------------------------------------------------------------------------------------------------- textbooks


def ddim(name, times, x, eta):
    """Song et al. 2021 (arXiv:2010.02502), equations 12 and 16: `sigma_t` of equation 16 in terms of alpha and sigma,
    which along a variance-preserving path is `eta sqrt((1 - abar')/(1 - abar)) sqrt(1 - abar/abar')`.
    """
    for a0, s0, a1, s1, z in parts(name, times, x):
        data = data_prediction(a0, s0, x)
        std = eta * np.sqrt(s1**2 / s0**2 * (s0**2 - (a0 / a1) ** 2 * s1**2))
        x = a1 * data + np.sqrt(s1**2 - std**2) * (x - a0 * data) / s0 + std * z
    return last(name, times, x)


def ddpm(name, times, x, eta):
    """Ho et al. 2020 (arXiv:2006.11239), algorithm 2, as a Gaussian posterior: `x_t = a x' + sqrt(v) e` from the step's
    end to its start, of which the law of `x'` given `x_t` and the data prediction follows by Bayes.
    """
    assert eta == 1
    for a0, s0, a1, s1, z in parts(name, times, x):
        a = a0 / a1
        v = s0**2 - a**2 * s1**2
        mean = (a * s1**2 * x + a1 * v * data_prediction(a0, s0, x)) / s0**2
        x = mean + np.sqrt(v * s1**2 / s0**2) * z
    return last(name, times, x)


def euler_ancestral(name, times, x, eta):
    """k-diffusion's `sample_euler_ancestral`, in `y = x/alpha` and `s = sigma/alpha`; from `alpha = 0`, where these are
    infinite, its limit.
    """
    for a0, s0, a1, s1, z in parts(name, times, x):
        to, noise = s1 / a1, (x - a0 * data_prediction(a0, s0, x)) / s0
        if a0 == 0:
            up = eta * to
            down = np.sqrt(to**2 - up**2)
            y = data_prediction(a0, s0, x) + noise * down
        else:
            at = s0 / a0
            up = min(to, eta * (to**2 * (at**2 - to**2) / at**2) ** 0.5)
            down = (to**2 - up**2) ** 0.5
            y = x / a0 + noise * (down - at)
        x = a1 * (y + z * up)
    return last(name, times, x)


def dpmpp_2m(name, times, x, eta=None):
    """k-diffusion's `sample_dpmpp_2m`, its `(sigma'/sigma) x` written for `x` in place of `x/alpha`."""
    old = h_last = None
    for a0, s0, a1, s1, _ in parts(name, times, x):
        data, h = data_prediction(a0, s0, x), half(a1, s1) - half(a0, s0)
        shown = data if old is None else (1 + h / (2 * h_last)) * data - h / (2 * h_last) * old
        x = s1 / s0 * x - a1 * np.expm1(-h) * shown
        old, h_last = data, h
    return last(name, times, x)


def dpmpp_2m_sde(name, times, x, eta):
    """k-diffusion's `sample_dpmpp_2m_sde`, `solver_type="midpoint"`."""
    old = h_last = None
    for a0, s0, a1, s1, z in parts(name, times, x):
        data, h = data_prediction(a0, s0, x), half(a1, s1) - half(a0, s0)
        eta_h = eta * h if eta else 0.0
        x = s1 / s0 * np.exp(-eta_h) * x - a1 * np.expm1(-h - eta_h) * data
        if old is not None:
            r = h_last / h
            x = x - a1 * 0.5 * np.expm1(-h - eta_h) * (1 / r) * (data - old)
        x = x + s1 * np.sqrt(-np.expm1(-2 * eta_h)) * z
        old, h_last = data, h
    return last(name, times, x)


def heun_edm(name, times, x, eta=None):
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 with `s(t) = 1`, `sigma(t) = t`, in `y = x/alpha`."""
    levels = [schedule(name, t)[1] / schedule(name, t)[0] for t in times[:-1]] + [0.0]
    y = x / schedule(name, times[0])[0]
    for at, to in zip(levels[:-1], levels[1:], strict=True):
        slope = (y - data_prediction(1.0, at, y)) / at
        guess = y + (to - at) * slope
        if to > 0:
            slope = (slope + (guess - data_prediction(1.0, to, guess)) / to) / 2
        y = y + (to - at) * slope
    return y


def flow_euler(name, times, x, eta=None):
    """`x' = x + h u(t, x)` with `u = alpha' data + sigma' noise`, to t = 1."""
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        alpha, sigma, alpha_dot, sigma_dot = schedule(name, t0)
        data = data_prediction(alpha, sigma, x)
        x = x + (t1 - t0) * (alpha_dot * data + sigma_dot * (x - alpha * data) / sigma)
    return x


def unipc(order=2, variant="bh2"):
    """Zhao et al. 2023 (arXiv:2302.04867), algorithms 1 and 2, as `multistep_uni_pc_bh_update` of its authors writes
    them for a data prediction; a time of infinite log-SNR is not remembered, and its step is of order 1.
    """

    def weights(rs, hh, big):
        if len(rs) == 1:
            return [0.5]
        rows, b, phi, factorial = [], [], np.expm1(hh) / hh - 1, 1
        for i in range(1, len(rs) + 1):
            rows.append(np.power(rs, i - 1))
            b.append(phi * factorial / big)
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        return np.linalg.solve(np.stack(rows), b)

    def move(a1, hh, plain, rs, differences):
        """UniP, and UniC where the last difference is that of the step's end."""
        if not differences:
            return plain
        if not np.isfinite(hh):  # from infinite log-SNR only the corrector of order 1 is left
            return plain + a1 * 0.5 * differences[-1]
        big = np.expm1(hh) if variant == "bh2" else hh
        return plain - a1 * big * sum(r * d for r, d in zip(weights(rs, hh, big), differences, strict=True))

    def recursion(name, times, x, eta=None):
        known, before = [], None  # earlier log-SNRs and data predictions; what the corrector takes up again
        for a0, s0, a1, s1, _ in parts(name, times, x):
            data, lam = data_prediction(a0, s0, x), half(a0, s0)
            if before is not None:
                *step, rs, differences, first = before
                x = move(*step, [*rs, 1.0], [*differences, data - first])
            h = half(a1, s1) - lam
            past = known[::-1][: order - 1] if np.isfinite(h) else []
            rs = [(node - lam) / h for node, _ in past]
            differences = [(m - data) / r for (_, m), r in zip(past, rs, strict=True)]
            before = a1, -h, s1 / s0 * x - a1 * np.expm1(-h) * data, rs, differences, data
            x = move(*before[:-1])
            if np.isfinite(lam):
                known.append((lam, data))
        return last(name, times, x)

    return recursion


# -------------------------------------------------------------------------------------------------------- the law


def both(make, textbook, etas=(None,), names=NAMES, predicts="data", grids=None):
    """The sampler and its textbook on every path and level of noise: one program a sampler."""
    shown = {name: mixture(PATHS[name], *MIX1, predicts=predicts) for name in names}
    noisy = etas != (None,)

    def run(name, x, z, eta):
        sampler = make(N) if eta is None else make(N, eta=eta)
        noise = {"brownian": jf.Recorded(z[:, None])} if noisy else {}
        out = jf.decode(shown[name], x[None], sampler, **noise)
        return out.x[0], out.nfe, out.status

    @jax.jit
    def every(xs, normals, levels):
        def one(name, eta):
            return jax.vmap(lambda x, z: run(name, x, z, eta), (0, 1))(xs[name], normals)

        return {(name, i): one(name, eta) for name in names for i, eta in enumerate(levels)}

    sampler = make(N) if not noisy else make(N, eta=etas[-1])
    times = {name: np.asarray(jax.jit(sampler.times.times)(PATHS[name])) for name in names}
    xs = {name: jnp.asarray(START * float(schedule(name, times[name][0])[1])) for name in names}
    levels = etas if not noisy else tuple(map(jnp.asarray, etas))
    results = every(xs, jnp.asarray(NORMALS), levels)
    for (name, i), (x, nfe, status) in results.items():
        truth = textbook(name, times[name], np.asarray(xs[name]), etas[i])
        yield (name, etas[i]), x, truth, nfe, status, times[name]


def assert_equal(results, nfe=N):
    for case, x, truth, calls, status, _ in results:
        np.testing.assert_allclose(x, truth, rtol=1e-10, atol=1e-10, err_msg=str(case))
        assert (calls == nfe).all() and (status == 0).all(), case


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_ddim_and_euler_ancestral(name, x64):
    make, textbook = getattr(jf.samplers, name), {"ddim": ddim, "euler_ancestral": euler_ancestral}[name]
    assert_equal(both(make, textbook, (0.0, 0.4, 1.0)))


def test_ddim_without_noise_draws_nothing(x64):
    assert jf.samplers.ddim(N).eta is None and jf.samplers.ddim(N, eta=0).eta is None
    assert_equal(both(jf.samplers.ddim, lambda *args: ddim(*args[:3], 0.0)))


def test_ddpm(x64):
    assert jf.samplers.ddpm(N).eta == jf.Ancestral(1.0)
    assert_equal(both(lambda n, eta: jf.samplers.ddpm(n), ddpm, (1.0,)))
    assert_equal(both(jf.samplers.ddim, ddpm, (1.0,), names=("CondOT", "VP")))


def test_dpmpp_2m(x64):
    assert_equal(both(jf.samplers.dpmpp_2m, dpmpp_2m))


def test_dpmpp_2m_sde_with_the_eta_of_k_diffusion(x64):
    assert_equal(both(jf.samplers.dpmpp_2m_sde, dpmpp_2m_sde, (0.0, 0.5, 1.0)))
    assert jf.samplers.dpmpp_2m_sde(N, eta=0.25).eta == 0.5


def test_heun_edm(x64):
    def given(n):
        return jf.samplers.heun_edm(n, sigma_min=0.01, sigma_max=50.0)

    assert_equal(both(given, heun_edm), nfe=2 * N - 1)
    own = list(both(jf.samplers.heun_edm, heun_edm, names=("VE",)))
    assert_equal(own, nfe=2 * N - 1)
    for times, (low, high) in ((own[0][-1], (float(PATHS["VE"].sigma_min), 80.0)),):
        i = np.arange(N)
        published = (high ** (1 / 7) + i / (N - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        np.testing.assert_allclose([schedule("VE", t)[1] for t in times[:-1]], published, rtol=1e-9)


def test_flow_euler(x64):
    assert_equal(both(jf.samplers.flow_euler, flow_euler, predicts="velocity"))


def test_flow_euler_shifted(x64):
    """Of Esser et al. 2024 (arXiv:2403.03206), equation 23: `s = 1 - t` goes to `3 s/(1 + 2 s)`."""
    results = list(
        both(lambda n: jf.samplers.flow_euler(n, shift=3.0), flow_euler, names=("CondOT",), predicts="velocity")
    )
    assert_equal(results)
    s = 1 - np.arange(N + 1) / N
    np.testing.assert_allclose(results[0][-1], 1 - 3 * s / (1 + 2 * s), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("order", "variant"), [(2, "bh2"), (2, "bh1"), (3, "bh2")])
def test_unipc(order, variant, x64):
    assert_equal(both(lambda n: jf.samplers.unipc(n, order=order, variant=variant), unipc(order, variant)))


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_other_grids(name, x64):
    """On a Karras grid, whose first level is finite on every path, and shifted."""
    textbook = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "dpmpp_2m_sde": dpmpp_2m_sde, "unipc": unipc()}[name]
    etas = (0.3, 1.0) if name in ("ddim", "dpmpp_2m_sde") else (None,)
    make = getattr(jf.samplers, name)
    assert_equal(both(lambda n, **eta: make(n, grid=jf.KarrasGrid(n, 0.03, 15.0), **eta), textbook, etas))
    assert_equal(both(lambda n, **eta: make(n, shift=2.5, **eta), textbook, etas, names=("CondOT", "Cosine")))


# ------------------------------------------------------------------------------------------------------- the names


def test_every_sampler_has_n_steps_an_explicit_end_and_an_example():
    for name in jf.samplers.names():
        function = getattr(jf.samplers, name)
        options = {"sigma_min": 0.002, "sigma_max": 80.0} if name == "heun_edm" else {}
        sampler = function(4, **options)
        assert sampler.n == 4 and sampler.end in ("denoise", "stop"), name
        assert "```python" in function.__doc__ and "evaluations" in function.__doc__, name
        assert next(iter(inspect.signature(function).parameters)) == "n"
        out = jax.eval_shape(lambda k, s=sampler: jf.sample(gaussian(jf.CondOT()), k, (2,), s), jr.key(0))
        assert out.x.shape == (2,), name
        for n in (0, 2.5):
            refuses(lambda n=n, f=function, o=options: f(n, **o), "n must be an integer of at least 1")


def test_one_step_is_the_data_prediction():
    field, x = gaussian(jf.CondOT(), mean=1.0), jnp.array([0.3, -0.8])
    for name in ("ddim", "ddpm", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        out = jf.decode(field, x, jf.samplers.by_name(name, 1), key=jr.key(0))
        np.testing.assert_allclose(out.x, 1.0, atol=1e-5)
        assert out.nfe == 1


def test_by_name():
    assert jf.samplers.by_name("ddim", 20, eta=0.5, shift=None) == jf.samplers.ddim(20, eta=0.5)
    assert jf.samplers.by_name("heun_edm", 8, rho=5.0) == jf.samplers.heun_edm(8, rho=5.0)
    assert {"ddim", "ddpm", "euler_ancestral", "heun_edm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "flow_euler"} <= set(
        jf.samplers.names()
    )
    for call, fragment in [
        (
            lambda: jf.samplers.by_name("dpmpp2m", 20),
            r"A sampler must be one of .*\. Got 'dpmpp2m': did you mean dpmpp_2m",
        ),
        (lambda: jf.samplers.by_name("names", 20), "A sampler must be one of"),
        (lambda: jf.samplers.by_name("_grid", 20), "A sampler must be one of"),
        (lambda: jf.samplers.by_name("", 20), "did you mean"),
        (lambda: jf.samplers.by_name("ddpm", 20, eta=0.5), r"ddpm must have options among grid, shift\. Got eta"),
        (lambda: jf.samplers.by_name("ddim", 20, steps=3, etta=1.0), "Got etta, steps"),
        (lambda: jf.samplers.ddim(20, eta=1.5), "The eta of DDIM must be a number from 0 to 1"),
        (lambda: jf.samplers.ddim(20, eta=-0.5), "The eta of DDIM must be a number from 0 to 1"),
        (lambda: jf.samplers.dpmpp_2m_sde(20, eta=-0.5), "eta must be at least 0"),
        (
            lambda: jf.samplers.dpmpp_2m(20, grid=jf.KarrasGrid(10)),
            "grid must have the 20 steps .* Got one of 10 steps",
        ),
        (lambda: jf.samplers.flow_euler(20, shift=0.0), "factor must be a positive number"),
        (lambda: jf.samplers.unipc(20, order=4), "order 1, 2 or 3"),
        (lambda: jf.samplers.unipc(20, variant="bh3"), "'bh1' or 'bh2'"),
        (lambda: jf.samplers.heun_edm(20, sigma_min=2.0, sigma_max=1.0), "sigma_max above sigma_min"),
    ]:
        refuses(call, fragment)
    refuses(lambda: jf.samplers.ddim(20, 0.5), "positional", TypeError)
