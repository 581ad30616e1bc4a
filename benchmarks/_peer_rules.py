"""The deterministic rules of azula, k-diffusion, diffusers and flow_matching, each with its own grids; for `peers.py`.

Each generator yields `(library, rule, grid, run)`, where `run(network, x0, budget)` returns the end, the first and the
last noise level `(alpha, sigma)`. `network(alpha, sigma, x)` gives the predictions of data and noise.
"""

import functools as ft
import importlib
import importlib.metadata
import sys
import types
from typing import Any

import numpy as np
import torch

RANGES = {"0.002-80": (0.002, 80.0), "0.03-15": (0.03, 15.0), "0.01-50": (0.01, 50.0)}

# azula -------------------------------------------------------------------------------------------------------------


def azula_rules():
    from azula import noise, sample
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        def __init__(self, network, schedule):
            super().__init__()
            self.network, self.schedule = network, schedule

        def forward(self, x_t, t, **kwargs):
            alpha, sigma = self.schedule(t)
            return DiracPosterior(next(self.network(alpha, sigma, x_t)))

    schedules = {
        "VE": noise.VESchedule(),
        "VE 0.002-80": noise.VESchedule(0.002, 80.0),
        "VP": noise.VPSchedule(),
        "cosine": noise.CosineSchedule(),
        "rectified": noise.RectifiedSchedule(),
        "decay": noise.DecaySchedule(),
    }
    samplers: dict[str, tuple[Any, dict]] = {"DDIM": (sample.DDIMSampler, {}), "Euler": (sample.EulerSampler, {})}
    samplers["Heun"] = (sample.HeunSampler, {})
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (2, 3, 4):
            samplers[f"{name}-{order}"] = (getattr(sample, f"{name}Sampler"), {"order": order})

    for rule, (cls, options) in samplers.items():
        for grid, schedule in schedules.items():

            def run(network, x0, budget, cls=cls, options=options, schedule=schedule, rule=rule):
                steps = budget // 2 if rule == "Heun" else budget
                sampler = cls(Exact(network, schedule), steps=steps, silent=True, dtype=torch.float64, **options)
                first, last = (schedule(t) for t in sampler.timesteps[[0, -1]])
                return sampler(first[1] * x0), first, last

            yield "azula", rule, grid, run


# k-diffusion -------------------------------------------------------------------------------------------------------


def k_diffusion_sampling():
    """`k_diffusion.sampling` alone: the package's own import asks for data sets and networks that play no part here."""
    root = importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(root)]
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # the one helper that sampling takes
    package.utils = utils
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion_rules():
    k = k_diffusion_sampling()
    two = lambda budget: (budget + 1) // 2  # noqa: E731  the last step, to 0, is one call
    one = lambda budget: budget  # noqa: E731
    still = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    rules = {
        "euler": (k.sample_euler, one, {}),
        "heun": (k.sample_heun, two, {}),
        "dpm_2": (k.sample_dpm_2, two, {}),
        "lms (order 2)": (k.sample_lms, one, {"order": 2}),
        "lms (order 3)": (k.sample_lms, one, {"order": 3}),
        "lms (order 4)": (k.sample_lms, one, {"order": 4}),
        "dpmpp_2s": (k.sample_dpmpp_2s_ancestral, two, still),
        "dpmpp_sde (eta 0)": (k.sample_dpmpp_sde, two, still),
        "dpmpp_2m": (k.sample_dpmpp_2m, one, {}),
        "dpmpp_2m_sde (eta 0, midpoint)": (k.sample_dpmpp_2m_sde, one, {**still, "solver_type": "midpoint"}),
        "dpmpp_2m_sde (eta 0, heun)": (k.sample_dpmpp_2m_sde, one, {**still, "solver_type": "heun"}),
        "dpmpp_3m_sde (eta 0)": (k.sample_dpmpp_3m_sde, one, still),
    }
    grids = {"vp": k.get_sigmas_vp}
    for name, (low, high) in RANGES.items():
        grids[f"karras {name}"] = lambda n, low=low, high=high: k.get_sigmas_karras(n, low, high)
        grids[f"exponential {name}"] = lambda n, low=low, high=high: k.get_sigmas_exponential(n, low, high)
        grids[f"polyexponential 1.5 {name}"] = lambda n, a=low, b=high: k.get_sigmas_polyexponential(n, a, b, rho=1.5)

    for rule, (sampler, steps, options) in rules.items():
        for grid, make in grids.items():

            def run(network, x0, budget, sampler=sampler, steps=steps, options=options, make=make):
                sigmas = make(steps(budget)).double()
                denoise = lambda x, sigma: next(network(1.0, sigma[0], x))  # noqa: E731
                x = sampler(denoise, sigmas[0] * x0, sigmas, disable=True, **options)
                return x, (1.0, sigmas[0]), (1.0, 0.0)

            yield "k-diffusion", rule, grid, run
    for grid, (low, high) in RANGES.items():

        def fast(network, x0, budget, low=low, high=high):
            denoise = lambda x, sigma: next(network(1.0, sigma[0], x))  # noqa: E731
            x = k.sample_dpm_fast(denoise, high * x0, low, high, budget, disable=True)
            return x, (1.0, high), (1.0, low)

        yield "k-diffusion", "dpm_fast", grid, fast


# diffusers ---------------------------------------------------------------------------------------------------------

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOWS = {"flow": FLOW, "flow, shift 3": {**FLOW, "flow_shift": 3.0}}


def diffusers_rules():
    import diffusers as d

    variance_exploding = ("Euler", "Heun", "LMS", "KDPM2", "EDM")
    two = lambda budget: (budget + 1) // 2  # noqa: E731
    one = lambda budget: budget  # noqa: E731
    rules: dict[str, tuple[Any, Any, dict]] = {
        "Euler": (d.EulerDiscreteScheduler, one, {}),
        "Heun": (d.HeunDiscreteScheduler, two, {}),
        "KDPM2": (d.KDPM2DiscreteScheduler, two, {}),
        "LMS": (d.LMSDiscreteScheduler, one, {}),
        "DDIM": (d.DDIMScheduler, one, {"clip_sample": False, "timestep_spacing": "trailing"}),
        "PNDM": (d.PNDMScheduler, lambda b: b - 1, {"skip_prk_steps": True, "set_alpha_to_one": True}),
        "IPNDM": (d.IPNDMScheduler, one, {}),
        "EDM Euler": (d.EDMEulerScheduler, one, {}),
        "FlowMatch Euler": (d.FlowMatchEulerDiscreteScheduler, one, {}),
        "FlowMatch Heun": (d.FlowMatchHeunDiscreteScheduler, two, {}),
    }
    for order in (1, 2, 3):
        for kind in ("midpoint", "heun") if order == 2 else ("midpoint",):
            name = f"(order {order}, {kind})" if order == 2 else f"(order {order})"
            options = {"solver_order": order, "solver_type": kind}
            plus = {**options, "algorithm_type": "dpmsolver++"}
            rules[f"DPM++ multistep {name}"] = (d.DPMSolverMultistepScheduler, one, plus)
            rules[f"DPM++ singlestep {name}"] = (
                d.DPMSolverSinglestepScheduler,
                one,
                {**plus, "lower_order_final": True},
            )
            rules[f"EDM DPM++ {name}"] = (d.EDMDPMSolverMultistepScheduler, one, options)
        rules[f"DEIS (order {order})"] = (d.DEISMultistepScheduler, one, {"solver_order": order})
        for kind in ("bh1", "bh2"):
            options = {"solver_order": order, "solver_type": kind}
            if kind == "bh1":  # not finite in a step to sigma = 0
                options["final_sigmas_type"] = "sigma_min"
            rules[f"UniPC (order {order}, {kind})"] = (d.UniPCMultistepScheduler, one, options)

    def grids(cls):
        names = cls.__init__.__annotations__.keys() | cls._get_init_keys(cls)
        if cls.__name__.startswith("EDM"):
            return {f"{s} {r}": {"sigma_schedule": s, "sigma_min": a, "sigma_max": b}
                    for s in ("karras", "exponential") for r, (a, b) in RANGES.items()}  # fmt: skip
        if cls.__name__.startswith("FlowMatch"):
            return {"shift 1": {}, "shift 3": {"shift": 3.0}}
        every = {**SPACINGS, **FLOWS} if "use_karras_sigmas" in names else {"": {}}
        return {name: (LATENT if "beta_start" in names else {}) | options for name, options in every.items()
                if set(options) <= names}  # fmt: skip

    for rule, (cls, steps, options) in rules.items():
        for grid, more in grids(cls).items():

            def run(network, x0, budget, cls=cls, steps=steps, options=options, more=more):
                scheduler = cls(**options, **more)
                scheduler.set_timesteps(steps(budget))
                return drive(scheduler, network, x0, cls.__name__.startswith(variance_exploding))

            yield "diffusers", rule, grid, run


def drive(s, network, x0, exploding):
    """A sample as diffusers' pipelines draw it; the network is told the scheduler's own noise levels."""
    kind = getattr(s.config, "prediction_type", "flow" if "FlowMatch" in type(s).__name__ else "v")
    if hasattr(s, "sigmas") and "IPNDM" not in type(s).__name__:
        s.sigmas = s.sigmas.double()

    def level(i, t):
        if "IPNDM" in type(s).__name__:
            return s.alphas[i], s.betas[i]
        if not hasattr(s, "sigmas"):
            return s.alphas_cumprod[int(t)] ** 0.5, (1 - s.alphas_cumprod[int(t)]) ** 0.5
        sigma = s.sigmas_interpol[i] if "KDPM2" in type(s).__name__ and i % 2 else s.sigmas[i]
        if "FlowMatch" in type(s).__name__:
            return 1 - sigma, sigma
        return (1.0, sigma) if exploding else s._sigma_to_alpha_sigma_t(sigma)

    first = tuple(map(float, level(0, s.timesteps[0])))
    x = first[1] * x0
    for i, t in enumerate(s.timesteps):
        alpha, sigma = map(float, level(i, t))
        s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else None
        data, noise = network(alpha, sigma, x)
        flow = noise - data
        v = alpha * noise - sigma * data
        output = {"epsilon": noise, "sample": data, "flow": flow, "flow_prediction": flow, "v": v}[kind]
        if "EDM" in type(s).__name__:  # these take the raw network of EDM's preconditioning
            width = s.config.sigma_data
            output = (data - width**2 / (sigma**2 + width**2) * x) * (sigma**2 + width**2) ** 0.5 / (sigma * width)
        x = s.step(output, t, x).prev_sample
    last = (1.0, 0.0)
    if hasattr(s, "sigmas") and s.sigmas[-1] > 0:
        last = tuple(map(float, level(-1, 0)))
    return x.double(), first, last


# flow_matching -----------------------------------------------------------------------------------------------------


def flow_matching_grid(grid: str, n: int):
    """`n` steps from t = 0 to t = 1; `"edm"` has the noise levels of EDM between the ends."""
    steps = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if grid == "edm":
        ramp = torch.linspace(0, 1, n, dtype=torch.float64)[1:]
        levels = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        return torch.cat([steps[:1], 1 / (1 + levels), steps[-1:]])
    return 1 - (1 - steps) ** {"uniform": 1.0, "quadratic": 2.0}[grid]


def flow_matching_rules():
    from flow_matching.solver import ODESolver

    calls = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 1}

    def run(network, x0, budget, rule, path, grid):
        def velocity(x, t):
            if path == "linear":
                data, noise = network(t, 1 - t, x)
                return data - noise
            angle = np.pi / 2 * float(t)
            data, noise = network(np.sin(angle), np.cos(angle), x)
            return np.pi / 2 * (np.cos(angle) * data - np.sin(angle) * noise)

        for n in range(budget // calls[rule], 0, -1):  # multistep rules start with others, that take more calls
            network.levels.clear()
            times = flow_matching_grid(grid, n)
            x = ODESolver(lambda x, t: velocity(x, t)).sample(x0, step_size=None, method=rule, time_grid=times)
            if len(network.levels) <= budget:
                break
        return x, (0.0, 1.0), (1.0, 0.0)

    for rule in calls:
        for path in ("linear", "cosine"):
            for grid in ("uniform", "quadratic", "edm"):
                yield "flow_matching", rule, f"{path}, {grid}", ft.partial(run, rule=rule, path=path, grid=grid)


RULES = (azula_rules, k_diffusion_rules, diffusers_rules, flow_matching_rules)
