"""Samplers by name against their textbook recursions, written out in numpy for a mixture of Gaussians."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, PATHS, gaussian, mixture, refuses, schedule, tiers
from solver_laws import data_prediction, mixture_flow

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


def dpmpp_2m_sde(solver_type="midpoint"):
    """k-diffusion's `sample_dpmpp_2m_sde`."""

    def recursion(name, times, x, eta):
        old = h_last = None
        for a0, s0, a1, s1, z in parts(name, times, x):
            data, h = data_prediction(a0, s0, x), half(a1, s1) - half(a0, s0)
            eta_h = eta * h if eta else 0.0
            x = s1 / s0 * np.exp(-eta_h) * x - a1 * np.expm1(-h - eta_h) * data
            if old is not None:
                r = h_last / h
                whole = -np.expm1(-h - eta_h)
                weight = 0.5 * whole if solver_type == "midpoint" else 1 - whole / (h + eta_h)
                x = x + a1 * weight * (1 / r) * (data - old)
            x = x + s1 * np.sqrt(-np.expm1(-2 * eta_h)) * z
            old, h_last = data, h
        return last(name, times, x)

    return recursion


def dpmpp_3m_sde(name, times, x, eta):
    """k-diffusion's `sample_dpmpp_3m_sde`; what lies before a step from infinite log-SNR has no weight."""
    seen, steps = [], []
    for a0, s0, a1, s1, z in parts(name, times, x):
        data, h = data_prediction(a0, s0, x), half(a1, s1) - half(a0, s0)
        eta_h = eta * h if eta else 0.0
        whole = h + eta_h
        x = s1 / s0 * np.exp(-eta_h) * x - a1 * np.expm1(-whole) * data
        phi_2 = np.expm1(-whole) / whole + 1
        if len(seen) > 1:
            r0, r1 = steps[0] / h, steps[1] / h
            first, before = (data - seen[0]) / r0, (seen[0] - seen[1]) / r1
            share = r0 / (r0 + r1) if np.isfinite(r1) else 0.0
            slope, bend = first + (first - before) * share, (first - before) / (r0 + r1)
            x = x + a1 * (phi_2 * slope - (phi_2 / whole - 0.5) * bend)
        elif seen:
            x = x + a1 * phi_2 * (data - seen[0]) / (steps[0] / h)
        x = x + s1 * np.sqrt(-np.expm1(-2 * eta_h)) * z
        seen, steps = [data, *seen], [h, *steps]
    return last(name, times, x)


def ancestral(at, to, eta):
    """k-diffusion's `get_ancestral_step`: `sigma_down`, `sigma_up`; from infinity its limit."""
    up = eta * to if np.isinf(at) else min(to, eta * (to**2 * (at**2 - to**2) / at**2) ** 0.5)
    return np.sqrt(to**2 - up**2), up


def dpm_2(name, times, x, eta=None):
    """k-diffusion's `sample_dpm_2_ancestral`, and without noise its `sample_dpm_2`, in `y = x/alpha`."""
    for a0, s0, a1, s1, z in parts(name, times, x):
        y, at = x / a0, s0 / a0
        down, up = ancestral(at, s1 / a1, eta or 0.0)
        slope = (y - data_prediction(1.0, at, y)) / at
        middle = np.exp((np.log(at) + np.log(down)) / 2)
        inside = y + slope * (middle - at)
        slope = (inside - data_prediction(1.0, middle, inside)) / middle
        x = a1 * (y + slope * (down - at) + z * up)
    return last(name, times, x)


def dpmpp_2s(name, times, x, eta=None):
    """k-diffusion's `sample_dpmpp_2s_ancestral`, at `eta = 0` DPM-Solver++(2S). From `alpha = 0` it is the limit at
    `eta = 1`, else the middle of `alpha/sigma`.
    """
    for a0, s0, a1, s1, z in parts(name, times, x):
        data, noise = data_prediction(a0, s0, x), (x - a0 * data_prediction(a0, s0, x)) / s0
        at = s0 / a0 if a0 else np.inf
        down, up = ancestral(at, s1 / a1, eta or 0.0)
        if a0 == 0:
            middle = 2 * down if down > 0 else s1 / a1
            y = data_prediction(1.0, middle, data + middle * noise) + down * noise
        else:
            t, t_next = -np.log(at), -np.log(down)
            h = t_next - t
            middle = np.exp(-(t + h / 2))
            inside = middle / at * x / a0 - np.expm1(-h / 2) * data
            y = down / at * x / a0 - np.expm1(-h) * data_prediction(1.0, middle, inside)
        x = a1 * (y + z * up)
    return last(name, times, x)


def dpmpp_sde(name, times, x, eta):
    """k-diffusion's `sample_dpmpp_sde` with `r = 1/2`, at `eta` 0 and 1; in between `sigma_down` is that of the exact
    step for a frozen data prediction. The normals inside the steps are those of the steps in reverse order.
    """

    def split(at, to):
        if eta in (0, 1):
            return ancestral(at, to, eta)
        down = 0.0 if np.isinf(at) else to * (to / at) ** eta
        return down, np.sqrt(to**2 - down**2)

    for i, (a0, s0, a1, s1, z) in enumerate(parts(name, times, x)):
        data, at, to = data_prediction(a0, s0, x), s0 / a0 if a0 else np.inf, s1 / a1
        middle = np.sqrt(at * to) if a0 else middle_from_infinity(to, eta)

        def move(stop, shown, z, x=x, at=at, a0=a0, s0=s0):
            down, up = split(at, stop)
            return down * x / s0 + (1 - down * a0 / s0) * shown + up * z

        inside = move(middle, data, NORMALS[::-1][i])
        x = a1 * move(to, data_prediction(1.0, middle, inside), z)
    return last(name, times, x)


def middle_from_infinity(to, eta):
    """Half of the time `(alpha/sigma)^(1 + eta)`."""
    return to * 2 ** (1 / (1 + eta))


def lms(order=4):
    """k-diffusion's `sample_lms`: the integrals of Lagrange's polynomials in sigma, in `y = x/alpha`."""

    def recursion(name, times, x, eta=None):
        levels, slopes = [], []
        for a0, s0, a1, s1, _ in parts(name, times, x):
            y, at, to = x / a0, s0 / a0, s1 / a1
            levels, slopes = [at, *levels][:order], [(y - data_prediction(1.0, at, y)) / at, *slopes][:order]
            for j, (node, slope) in enumerate(zip(levels, slopes, strict=True)):
                others = levels[:j] + levels[j + 1 :]
                whole = (
                    np.polynomial.Polynomial.fromroots(others).integ() if others else np.polynomial.Polynomial([0, 1])
                )
                y = y + (whole(to) - whole(at)) / np.prod([node - other for other in others]) * slope
            x = a1 * y
        return last(name, times, x)

    return recursion


def deis(order=3):
    """Zhang & Chen 2023 (arXiv:2204.13902), equation 15: Lagrange's polynomials in `log(sigma/alpha)`, integrated."""
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def recursion(name, times, x, eta=None):
        known, seen = [], []
        for a0, s0, a1, s1, _ in parts(name, times, x):
            start, stop = np.log(s0 / a0), np.log(s1 / a1)
            known = [start, *known][:order]
            seen = [(x - a0 * data_prediction(a0, s0, x)) / s0, *seen][:order]
            points = start + (stop - start) * (1 + nodes) / 2
            change = 0.0
            for j, noise in enumerate(seen):
                shape = np.exp(points) * (stop - start) / 2
                for k in range(len(known)):
                    if k != j:
                        shape = shape * (points - known[k]) / (known[j] - known[k])
                change = change + (weights * shape).sum() * noise
            x = a1 * (x / a0 + change)
        return last(name, times, x)

    return recursion


def sa_solver(predictor=3, corrector=3):
    """Xue et al. 2023 (arXiv:2309.05019), algorithm 1: `int (1 + tau^2) e^(-(1 + tau^2)(lam' - lam)) l_j(lam) dlam` of
    Lagrange's polynomials through the known data predictions, by quadrature. What belongs to infinite log-SNR is not
    remembered; the step from there is corrected by the mean of its ends.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def shares(known, start, stop, kappa):
        lams = start + (stop - start) * (1 + nodes) / 2
        weight = weights * (stop - start) / 2 * kappa * np.exp(-kappa * (stop - lams))
        return [
            (weight * np.prod([(lams - other) / (node - other) for other in known[:j] + known[j + 1 :]], axis=0)).sum()
            for j, node in enumerate(known)
        ]

    def recursion(name, times, x, eta):
        kappa, lams, seen, base, first = 1 + eta**2, [], [], None, None
        for a0, s0, a1, s1, z in parts(name, times, x):
            lam, lam_next, new = half(a0, s0), half(a1, s1), data_prediction(a0, s0, x)
            if base is not None:  # correct the step that led here
                if lams:
                    known = [lam, *lams][: corrector + 1]
                    mean = sum(c * d for c, d in zip(shares(known, lams[0], lam, kappa), [new, *seen], strict=False))
                else:
                    mean = (first + new) / 2
                x = base + a0 * mean
            first = new
            lams, seen = ([lam, *lams], [new, *seen]) if np.isfinite(lam) else ([], [])
            decay = np.exp(-(eta**2) * (lam_next - lam)) if eta else 1.0
            base = s1 / s0 * decay * x + s1 * np.sqrt(1 - decay**2) * z
            known = lams[:predictor]
            mean = sum(c * d for c, d in zip(shares(known, lam, lam_next, kappa), seen, strict=False)) if known else new
            x = base + a1 * mean
        return last(name, times, x)

    return recursion


def heun_edm(s_churn=0.0, s_min=0.0, s_max=np.inf, s_noise=1.0):
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 2 with `s(t) = 1`, `sigma(t) = t`, in `y = x/alpha`; without
    churn it is algorithm 1.
    """

    def recursion(name, times, x, eta=None):
        levels = [schedule(name, t)[1] / schedule(name, t)[0] for t in times[:-1]] + [0.0]
        y = x / schedule(name, times[0])[0]
        for at, to, z in zip(levels[:-1], levels[1:], NORMALS, strict=True):
            gamma = min(s_churn / N, np.sqrt(2) - 1) if s_min <= at <= s_max and to > 0 else 0.0
            raised = at + gamma * at
            y = y + np.sqrt(raised**2 - at**2) * s_noise * z
            slope = (y - data_prediction(1.0, raised, y)) / raised
            guess = y + (to - raised) * slope
            if to > 0:
                slope = (slope + (guess - data_prediction(1.0, to, guess)) / to) / 2
            y = y + (to - raised) * slope
        return y

    return recursion


def velocity(name, t, x):
    alpha, sigma, alpha_dot, sigma_dot = schedule(name, t)
    data = data_prediction(alpha, sigma, x)
    return alpha_dot * data + sigma_dot * (x - alpha * data) / sigma


def flow_euler(name, times, x, eta=None):
    """`x' = x + h u(t, x)` with `u = alpha' data + sigma' noise`, to t = 1."""
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        x = x + (t1 - t0) * velocity(name, t0, x)
    return x


def heun_flow(name, times, x, eta=None):
    """Hairer, Norsett & Wanner 1993, section II.1: the trapezoidal rule with Euler's guess."""
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        slope = velocity(name, t0, x)
        x = x + (t1 - t0) / 2 * (slope + velocity(name, t1, x + (t1 - t0) * slope))
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

KARRAS = jf.KarrasGrid(N, 0.03, 15.0)
CHURN = {"s_churn": 2.0, "s_min": 0.05, "s_max": 12.0, "s_noise": 1.003}


class Case(NamedTuple):
    """A sampler with options, its textbook, levels of noise, and how many evaluations it makes."""

    textbook: Callable[..., Any]
    etas: tuple[Any, ...] = (None,)
    options: dict[str, Any] = {}
    nfe: int = N
    predicts: str = "data"
    noisy: bool = False  # without an `eta`
    names: tuple[str, ...] = NAMES


ETAS = (0.0, 0.4, 1.0)
TWICE, FROM_LEVEL = 2 * N - 1, {"grid": KARRAS}
CASES = {
    "ddim": [Case(ddim, ETAS), Case(lambda *args: ddim(*args[:3], 0.0))],
    "ddpm": [Case(lambda *args: ddpm(*args[:3], 1.0), noisy=True)],
    "deis": [Case(deis(), options=FROM_LEVEL), Case(deis(2), options={"order": 2}, names=("VP", "VE"))],
    "dpm_2": [Case(dpm_2, options=FROM_LEVEL, nfe=TWICE), Case(dpm_2, nfe=TWICE, names=("VP", "VE"))],
    "dpm_2_ancestral": [Case(dpm_2, ETAS, FROM_LEVEL, TWICE)],
    "dpmpp_2m": [Case(dpmpp_2m)],
    "dpmpp_2m_sde": [
        Case(dpmpp_2m_sde(), (0.0, 0.5, 1.0)),
        Case(dpmpp_2m_sde("heun"), (0.0, 0.5, 1.0), {"solver_type": "heun"}),
    ],
    "dpmpp_2s": [Case(dpmpp_2s, nfe=TWICE)],
    "dpmpp_2s_ancestral": [Case(dpmpp_2s, ETAS, nfe=TWICE), Case(dpmpp_2s, ETAS, FROM_LEVEL, TWICE)],
    "dpmpp_3m_sde": [Case(dpmpp_3m_sde, (0.0, 0.5, 1.0))],
    "dpmpp_sde": [Case(dpmpp_sde, (0.0, 0.5, 1.0), nfe=TWICE)],
    "euler_ancestral": [Case(euler_ancestral, ETAS)],
    "flow_euler": [Case(flow_euler, predicts="velocity")],
    "heun_edm": [
        Case(heun_edm(), options={"sigma_min": 0.01, "sigma_max": 50.0}, nfe=TWICE),
        Case(heun_edm(**CHURN), options={"sigma_min": 0.03, "sigma_max": 15.0, **CHURN}, nfe=TWICE, noisy=True),
    ],
    "heun_flow": [Case(heun_flow, options={"grid": jf.UniformGrid(N, t1=0.95)}, nfe=2 * N, predicts="velocity")],
    "lms": [Case(lms(), options=FROM_LEVEL), Case(lms(2), options={"order": 2}, names=("VP", "VE"))],
    "sa_solver": [
        Case(sa_solver(), (0.0, 0.6, 1.0)),
        Case(sa_solver(2, 1), (1.0,), {"predictor": 2, "corrector": 1}, names=("CondOT", "VP")),
    ],
    "unipc": [
        Case(unipc(order, variant), options={"order": order, "variant": variant})
        for order, variant in ((2, "bh2"), (2, "bh1"), (3, "bh2"))
    ],
}
ADAPTIVE = {"dpm_adaptive"}  # its textbook is a test of its own


class Inside(dfx.AbstractBrownianPath):
    """Noise of given normals for whole steps and for their middles, in a clock's noise time."""

    starts: Any
    middles: Any
    ends: Any
    normals: Any
    inner: Any
    t0: Any
    t1: Any
    levy_area: Any = eqx.field(static=True, default=dfx.BrownianIncrement)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        i = jnp.argmin(jnp.abs(self.starts - t0))
        whole = jnp.abs(self.ends[i] - t1) < jnp.abs(self.middles[i] - t1)
        return jnp.sqrt(jnp.maximum(t1 - t0, 0)) * jnp.where(whole, self.normals[i], self.inner[i])[None]


def noise_inside(name, times, z, eta):
    """The noise of `dpmpp_sde`, which asks for it inside a step: the time is `(alpha/sigma)^(2 eta)`."""
    with np.errstate(divide="ignore"):
        levels = [np.divide(*schedule(name, t)[1::-1]) for t in times[:-1]]
    middles = [np.sqrt(a * b) if np.isfinite(a) else middle_from_infinity(b, eta) for a, b in zip(levels, levels[1:])]  # noqa: B905
    starts, middles, ends = (jnp.asarray(v) ** (-2 * eta) for v in (levels[:-1], middles, levels[1:]))
    return Inside(starts, middles, ends, z[:-1], z[::-1][:-1], starts[0], ends[-1])


def both(make, textbook, etas=(None,), names=NAMES, predicts="data", noisy=False, noise=None):
    """The sampler and its textbook on every path and level of noise: one program a path."""
    shown = {name: mixture(PATHS[name], *MIX1, predicts=predicts) for name in names}
    noisy = noisy or etas != (None,)
    sampler = make(N) if etas == (None,) else make(N, eta=etas[-1])
    times = {name: np.asarray(jax.jit(lambda p: grid_times(sampler, p))(PATHS[name])) for name in names}
    xs = {name: jnp.asarray(START * float(schedule(name, times[name][0])[1])) for name in names}

    def run(name, x, z, eta):
        given = {}
        if noisy:
            given = {"brownian": jf.Recorded(z[:, None]) if noise is None else noise(name, times[name], z, eta)}
        out = jf.decode(shown[name], x[None], make(N) if eta is None else make(N, eta=eta), **given)
        return out.x[0], out.nfe, out.status

    @jax.jit
    def every(xs, normals, levels):
        def on_path(name):
            def at_level(eta):
                return jax.vmap(lambda x, z: run(name, x, z, eta), (0, 1))(xs[name], normals)

            return [at_level(None)] if levels is None else jax.vmap(at_level)(levels)

        return {name: on_path(name) for name in names}

    results = every(xs, jnp.asarray(NORMALS), None if etas == (None,) else jnp.asarray(etas))
    for name, found in results.items():
        for i, eta in enumerate(etas):
            x, nfe, status = found[0] if etas == (None,) else jax.tree.map(lambda leaf, i=i: leaf[i], found)
            yield (name, eta), x, textbook(name, times[name], np.asarray(xs[name]), eta), nfe, status, times[name]


def grid_times(sampler, path):
    return sampler.times.times(path) if isinstance(sampler.times, jf.AbstractGridRule) else sampler.times


def assert_equal(results, nfe=N):
    for case, x, truth, calls, status, _ in results:
        np.testing.assert_allclose(x, truth, rtol=1e-10, atol=1e-10, err_msg=str(case))
        assert (calls == nfe).all() and (status == 0).all(), case


def cases():
    """The first case of each sampler, and in the slow tier the others."""
    for name, found in CASES.items():
        for i in range(len(found)):
            yield pytest.param(name, i, id=f"{name}-{i}", marks=[pytest.mark.slow] if i else [])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "i"), list(cases()))
def test_a_sampler_is_its_textbook(name, i, x64):
    case = CASES[name][i]

    def make(n, **eta):
        return getattr(jf.samplers, name)(n, **case.options, **eta)

    noise = noise_inside if name == "dpmpp_sde" else None
    assert_equal(both(make, case.textbook, case.etas, case.names, case.predicts, case.noisy, noise), case.nfe)


def test_every_sampler_has_a_textbook():
    assert CASES.keys() | ADAPTIVE == set(jf.samplers.names()) and not CASES.keys() & ADAPTIVE


def test_a_level_of_zero_draws_nothing():
    assert jf.samplers.ddim(N).eta is None and jf.samplers.ddim(N, eta=0).eta is None
    assert jf.samplers.dpm_2_ancestral(N, eta=0.0) == jf.samplers.dpm_2(N)
    assert jf.samplers.dpmpp_2s_ancestral(N, eta=0) == jf.samplers.dpmpp_2s(N)
    assert jf.samplers.heun_edm(N, s_churn=0).solver == dfx.Heun()
    assert jf.samplers.ddpm(N).eta == jf.Ancestral(1.0)


def test_the_eta_of_k_diffusion_is_the_square():
    assert jf.samplers.dpmpp_2m_sde(N, eta=0.25).eta == jf.samplers.dpmpp_3m_sde(N, eta=0.25).eta == 0.5
    assert jf.samplers.dpmpp_sde(N, eta=0.25).eta == 0.5


def test_heun_edm_has_the_published_levels(x64):
    own = list(both(jf.samplers.heun_edm, heun_edm(), names=("VE",)))
    assert_equal(own, nfe=2 * N - 1)
    low, high, i = float(PATHS["VE"].sigma_min), 80.0, np.arange(N)
    published = (high ** (1 / 7) + i / (N - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose([schedule("VE", t)[1] for t in own[0][-1][:-1]], published, rtol=1e-9)


def test_flow_euler_shifted(x64):
    """Of Esser et al. 2024 (arXiv:2403.03206), equation 23: `s = 1 - t` goes to `3 s/(1 + 2 s)`."""
    results = list(
        both(lambda n: jf.samplers.flow_euler(n, shift=3.0), flow_euler, names=("CondOT",), predicts="velocity")
    )
    assert_equal(results)
    s = 1 - np.arange(N + 1) / N
    np.testing.assert_allclose(results[0][-1], 1 - 3 * s / (1 + 2 * s), rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_other_grids(name, x64):
    """On a Karras grid, whose first level is finite on every path, and shifted."""
    textbook = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "dpmpp_2m_sde": dpmpp_2m_sde(), "unipc": unipc()}[name]
    etas = (0.3, 1.0) if name in ("ddim", "dpmpp_2m_sde") else (None,)
    make = getattr(jf.samplers, name)
    assert_equal(both(lambda n, **eta: make(n, grid=KARRAS, **eta), textbook, etas))
    assert_equal(both(lambda n, **eta: make(n, shift=2.5, **eta), textbook, etas, names=("CondOT", "Cosine")))


def third_order(name, x, t0, t1):
    """A step of DPM-Solver++(3S) and of the (2S) with a third for its fraction inside it, in `y` and `1/s`; the points
    inside a step from `alpha = 0` are fractions of `1/s`.
    """
    (a0, s0, *_), (a1, s1, *_) = schedule(name, t0), schedule(name, t1)
    tau0, tau1, gap = a0 / s0, a1 / s1, half(a1, s1) - half(a0, s0)
    finite = np.isfinite(gap)
    inner = [tau0 * np.exp(r * gap) if finite else r * tau1 for r in (1 / 3, 2 / 3)]
    phi = (lambda z: np.expm1(-z) / z + 1) if finite else (lambda z: None)

    def move(stop, shown):  # u = x/sigma, and x/alpha = u / tau
        return (x / s0 + (stop - tau0) * shown) / stop

    def data(tau, y):
        return data_prediction(1.0, 1 / tau, y)

    def mean(first, other, fraction, r):  # of the line through both, to the fraction r of the step
        share = phi(r * gap) / -np.expm1(-r * gap) if finite else 1 / 2
        return first + r / fraction * share * (other - first)

    first = data_prediction(a0, s0, x)
    second = data(inner[0], move(inner[0], first))
    third = data(inner[1], move(inner[1], mean(first, second, 1 / 3, 2 / 3)))
    high = mean(first, third, 2 / 3, 1.0)
    low = first + 3 / 2 * (second - first)
    return a1 * move(tau1, high), (tau1 - tau0) * (high - low), (x / s0, tau1 * move(tau1, high))


@pytest.mark.parametrize("name", tiers(NAMES, fast=("CondOT",)))
def test_dpm_adaptive_takes_the_steps_of_its_textbook(name, x64):
    """Each accepted step is DPM-Solver++(3S), and its estimate of the error is within the tolerance."""
    field, tolerance = mixture(PATHS[name], *MIX1, predicts="data"), 1e-2
    sampler = jf.samplers.dpm_adaptive(tolerance, tolerance)
    assert sampler.t1 == 0.999 and jf.samplers.dpm_adaptive().controller.rtol == 0.05
    saveat = dfx.SaveAt(t0=True, steps=True)
    start = jnp.asarray(START[:1]) * float(schedule(name, 0.0)[1])
    out = jax.jit(lambda x: jf.decode(field, x, sampler, saveat=saveat))(start)
    taken = np.isfinite(np.asarray(out.ts))
    ts, xs = np.asarray(out.ts)[taken], np.asarray(out.xs)[taken, 0]
    assert out.status == 0 and ts[0] == 0 and abs(ts[-1] - 0.999) < 1e-12 and len(ts) > 5
    assert (out.nfe - 2) % 3 == 0 and out.nfe >= 3 * (len(ts) - 1)
    for t0, t1, x, x1 in zip(ts[:-1], ts[1:], xs[:-1], xs[1:], strict=True):
        truth, error, (u0, u1) = third_order(name, x, t0, t1)
        np.testing.assert_allclose(x1, truth, rtol=1e-9, atol=1e-10)
        assert abs(error) <= (1 + 1e-9) * tolerance * (1 + max(abs(u0), abs(u1))), (t0, t1)


# ------------------------------------------------------------------------------------------------------- the names


LEVELS = {"heun_edm": {"sigma_min": 0.002, "sigma_max": 80.0}}
LEVELS |= {name: {"grid": jf.KarrasGrid(4, 0.002, 80.0)} for name in ("dpm_2", "dpm_2_ancestral", "lms", "deis")}


def test_every_sampler_has_n_steps_an_explicit_end_and_an_example():
    for name in jf.samplers.names():
        function = getattr(jf.samplers, name)
        assert "```python" in function.__doc__ and "evaluations" in function.__doc__, name
        if name in ADAPTIVE:
            continue
        options = LEVELS.get(name, {})
        sampler = function(4, **options)
        assert sampler.n == 4 and sampler.end in ("denoise", "stop"), name
        assert next(iter(inspect.signature(function).parameters)) == "n"
        out = jax.eval_shape(lambda k, s=sampler: jf.sample(gaussian(jf.CondOT()), k, (2,), s), jr.key(0))
        assert out.x.shape == (2,), name
        for n in (0, 2.5):
            refuses(lambda n=n, f=function: f(n), r"n must be an integer( of at least 1)?\. Got")


def test_one_step_is_the_data_prediction():
    field, x = gaussian(jf.CondOT(), mean=1.0), jnp.array([0.3, -0.8])
    names = ("ddim", "ddpm", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "dpmpp_2s_ancestral", "sa_solver")

    @jax.jit
    def every(x):
        return {name: jf.decode(field, x, jf.samplers.by_name(name, 1), key=jr.key(0)) for name in names}

    for name, out in every(x).items():
        np.testing.assert_allclose(out.x, 1.0, atol=1e-5, err_msg=name)
        assert out.nfe == 1


def test_a_first_level_that_is_infinite_raises():
    """What counts in `sigma/alpha` starts where that is finite, and says how."""
    field = gaussian(jf.CondOT())
    for name, fragment in (
        ("lms", "Got t = 0, .*start a little later"),
        ("deis", "Got t = 0, .*start a little later"),
        ("dpm_2", r"Got t = 0, where sigma/alpha is infinite.*KarrasGrid\(n, sigma_min=0.002, sigma_max=80.0\)"),
        ("dpm_2_ancestral", "Got t = 0, where sigma/alpha is infinite"),
        ("heun_edm", "Got t = 0, .*start a little later"),
    ):
        refuses(lambda name=name: jf.sample(field, jr.key(0), (2,), jf.samplers.by_name(name, 4)), fragment)
    by_noise = gaussian(jf.CondOT(), predicts="noise")
    sampler = jf.samplers.dpmpp_2s_ancestral(4)
    refuses(lambda: jf.sample(by_noise, jr.key(0), (2,), sampler), "a noise prediction does not give the data")


@pytest.mark.parametrize("predicts", ["noise", "data"])
def test_two_stages_are_of_order_two(predicts, x64):
    """Against the flow of the mixture with `alpha = 1`, sigma from 6 to 0.08, in equal steps of log-SNR."""
    path, (_, exact) = jf.VE(0.08, 6.0), mixture_flow()
    field, errors = mixture(path, *MIX1, predicts="data"), []
    for n in (80, 160):
        sampler = jf.FixedSteps(jf.UniformGrid(n), jf.DPM2(predicts), end="stop")
        x = jax.jit(jax.vmap(lambda x, s=sampler: jf.decode(field, x[None], s).x[0]))(jnp.asarray(exact[0]))
        errors.append(np.sqrt(np.mean((x - exact[-1]) ** 2)))
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1, errors


@pytest.mark.slow
def test_the_rule_of_two_stages():
    """What does not fit raises; coloured noise is coloured; a guided step costs four calls."""
    field, x, key, grid = gaussian(jf.VP()), jnp.ones(2), jr.key(0), jf.UniformGrid(4)
    coupled = gaussian(jf.VP(source=jf.Normal(coupled=True)))
    rough = jf.FixedSteps(grid, jf.DPM2(eta=1.0), end="denoise")
    tree = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), key)
    for call, fragment in [
        (lambda: jf.DPM2("velocity"), r"must hold 'noise' or 'data' fixed. Got predicts='velocity'"),
        (lambda: jf.DPM2(eta=1.5), "must be a number from 0 to 1. Got 1.5"),
        (lambda: jf.decode(field, x, jf.FixedSteps(grid, jf.DPM2())), "must stop where sigma > 0.*end='denoise'"),
        (lambda: jf.decode(coupled, x, rough, key=key), r"DPM2\(eta=\) must have a Gaussian source"),
        (lambda: jf.decode(field, x, rough), "must have a key"),
        (lambda: jf.decode(field, x, jf.FixedSteps(grid, jf.DPM2(), eta=1.0), key=key), "must stand alone"),
        (lambda: jf.decode(field, x, rough, key=key, brownian=tree), "must stand alone.*a Brownian path beside it"),
    ]:
        refuses(call, fragment)
    factor = jnp.array([[2.0, 0.6], [0.6, 1.0]])
    path = jf.VP(source=jf.Normal(jf.Coloured(factor)))
    zero = jf.Field(lambda t, x, args: 0 * x, path, "data")
    st = jf.stepper(zero, rough)
    by_noise = jax.jacfwd(lambda z: st.step(st.row(0), jnp.zeros(2), None, z)[0])(jnp.zeros(2))
    np.testing.assert_allclose(by_noise @ by_noise.T, st.row(0).std ** 2 * factor, rtol=1e-5)
    guided = jf.Guided(jf.Field(lambda t, x, label: label - x, jf.CondOT(), "velocity"), null=0.0)
    sampler = jf.samplers.dpmpp_2s_ancestral(3)
    assert jf.sample(guided, key, (2,), sampler, args=jf.Args(1.0, scale=2.0)).nfe == 2 * (2 * 2 + 1)


def test_a_grid_may_be_an_array():
    times = jnp.asarray([0.05, 0.3, 0.6, 1.0])
    assert jf.samplers.dpmpp_2m(3, grid=times) == jf.FixedSteps(times, jf.DPMpp(2, "midpoint"), end="denoise")


def test_by_name():
    assert jf.samplers.by_name("ddim", 20, eta=0.5, shift=None) == jf.samplers.ddim(20, eta=0.5)
    assert jf.samplers.by_name("heun_edm", 8, rho=5.0) == jf.samplers.heun_edm(8, rho=5.0)
    assert jf.samplers.by_name("dpm_adaptive", rtol=1e-3) == jf.samplers.dpm_adaptive(1e-3)
    assert not {"names", "by_name", "table_times"} & set(jf.samplers.names())
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
        (lambda: jf.samplers.by_name("ddim"), r"ddim must have a number of steps. Got none: .*ddim\(20\)"),
        (
            lambda: jf.samplers.by_name("dpm_adaptive", 20),
            r"dpm_adaptive must have options among atol, rtol, t0, t1\. Got n",
        ),
        (lambda: jf.samplers.dpmpp_2m(4, grid=jnp.linspace(0, 1, 4)), "Got one of 3 steps"),
        (
            lambda: jf.samplers.dpmpp_2m(3, shift=2.0, grid=jnp.linspace(0, 1, 4)),
            "rule must be AbstractGridRule, as jflow.UniformGrid",
        ),
        (lambda: jf.samplers.dpmpp_2m_sde(20, solver_type="euler"), "'midpoint' or 'heun'. Got 'euler'"),
        (lambda: jf.samplers.dpmpp_3m_sde(20, eta=-0.5), "eta must be at least 0"),
        (lambda: jf.samplers.dpm_2_ancestral(20, eta=1.5), "The eta of DDIM must be a number from 0 to 1"),
        (lambda: jf.samplers.dpmpp_2s_ancestral(20, eta=-0.1), "The eta of DDIM must be a number from 0 to 1"),
        (lambda: jf.samplers.lms(20, order=5), "order from 1 to 4"),
        (lambda: jf.samplers.deis(20, order=4), "order 1, 2 or 3"),
        (lambda: jf.samplers.sa_solver(20, predictor=4), "Got predictor=4"),
        (lambda: jf.samplers.heun_edm(20, s_max=50.0), "must go with s_churn.*Got s_churn=0.0"),
        (lambda: jf.samplers.heun_edm(20, s_churn=-1.0), "s_churn must be a number of at least 0"),
        (lambda: jf.samplers.unipc(20, order=4), "order 1, 2 or 3"),
        (lambda: jf.samplers.unipc(20, variant="bh3"), "'bh1' or 'bh2'"),
        (lambda: jf.samplers.heun_edm(20, sigma_min=2.0, sigma_max=1.0), "sigma_max above sigma_min"),
    ]:
        refuses(call, fragment, (ValueError, TypeError))
    refuses(lambda: jf.samplers.ddim(20, 0.5), "positional", TypeError)
