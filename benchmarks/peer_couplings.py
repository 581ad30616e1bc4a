"""torchcfm's rows of the table of `couplings.py`: `python benchmarks/peer_couplings.py [STEPS]`, in `make peers`.

The network, its first weights, the data, the optimiser, the budget and the average are those of `couplings.py`, and so
is the judgement: the averaged weights go back into jflow's network. torchcfm pairs and interpolates, torch trains, and
each draws its own noise and times.
"""

import sys

import jax.numpy as jnp
import numpy as np
import torch
from couplings import DECAY, RATE, batch, couplings, untrained
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

PLANS = {
    "torchcfm, independent": ConditionalFlowMatcher(sigma=0.0),
    "torchcfm, exact": ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
}


def tensor(array):
    return torch.tensor(np.asarray(array))


def velocity(params, t, x):
    """jflow's MLP in torch."""
    h = torch.cat([x, t[:, None]], 1) @ params[0] + params[1]
    for weight, bias in zip(params[2::2], params[3::2], strict=True):
        h = torch.nn.functional.silu(h) @ weight + bias
    return h


def trained(source, matcher, steps):
    """The field with the averaged weights that torch trained."""
    torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002  torchcfm draws pairs by it
    field = untrained(source)
    layers = [*field.net.hidden, field.net.out]
    places = [place for layer in layers for place in (layer.kernel, layer.bias)]
    params = [tensor(place[...]).requires_grad_() for place in places]
    average = [torch.zeros_like(param) for param in params]
    optimizer = torch.optim.Adam(params, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for i in range(steps):
        given = {name: tensor(rows) for name, rows in batch(source, i).items()}
        x0 = given["x0"] if "x0" in given else torch.randn_like(given["x"])
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, given["x"])
        loss = ((velocity(params, t, xt) - ut) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mean, param in zip(average, params, strict=True):
                mean.lerp_(param, 1 - DECAY)
    for place, mean in zip(places, average, strict=True):
        place[...] = jnp.asarray(mean.numpy() / (1 - DECAY**steps))
    return field


if __name__ == "__main__":
    couplings(int(sys.argv[1]) if len(sys.argv) > 1 else 5000, trained, PLANS)
