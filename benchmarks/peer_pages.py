"""The listings of docs/from/ give the same numbers before and after: `benchmarks/peer_pages.py`, in `make peers`.

A page has three listings in a row: what both share, the one before (marked `py`, in the terms of the other library),
and the one after (jflow's). Both are run as they stand, and the values that they share by name are compared. EDM and
SiT have no package: there the one before has the formulas of the paper in numpy.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

import numpy as np

PAGES = Path(__file__).parents[1] / "docs" / "from"
LISTING = re.compile(r"^```(py|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BOUND = 1e-5
PEERS: dict[str, tuple[str | None, tuple[str, ...]]] = {  # page: its package, and what is compared
    "diffusers": ("diffusers", ("x", "y")),
    "edm": (None, ("loss", "x")),
    "flow_matching": ("flow_matching", ("loss", "x", "log_p")),
    "k_diffusion": ("k-diffusion", ("x", "y")),
    "sit": (None, ("loss", "x", "y")),
    "torchcfm": ("torchcfm", ("loss", "x")),
}


def listings(page):
    """The three listings of a page: shared, before, after."""
    (first, shared), (second, before), (third, after), *_ = LISTING.findall((PAGES / f"{page}.md").read_text())
    assert (first, second, third) == ("python", "py", "python"), page
    return shared, before, after


def differences(page):
    """For each value the largest difference between the listings, over the largest number."""
    shared, *both = listings(page)
    found = []
    for listing in both:
        namespace = {"__name__": "page"}
        exec(compile(f"{shared}\n{listing}", f"docs/from/{page}.md", "exec"), namespace)
        found.append([_array(namespace[name]) for name in PEERS[page][1]])
    return [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(*found, strict=True)]


def _array(value):
    return np.asarray(value.detach() if hasattr(value, "detach") else value, float)


def main():
    from _peer_rules import k_diffusion_sampling

    k_diffusion_sampling()  # its own import asks for packages that play no part here
    print("| page | beside | value | largest difference |\n|---|---|---|---|")
    largest = 0.0
    for page, (package, names) in PEERS.items():
        beside = f"{package} {importlib.metadata.version(package)}" if package else "the paper's formulas"
        for name, difference in zip(names, differences(page), strict=True):
            print(f"| {page} | {beside} | `{name}` | {difference:.1e} |", flush=True)
            largest = max(largest, float(difference))
    if not largest < BOUND:
        sys.exit(f"A difference must be below {BOUND:g}. Got {largest:.1e}.")


if __name__ == "__main__":
    main()
