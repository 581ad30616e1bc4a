"""What one would write with diffrax alone for one example."""

import diffrax as dfx


def solve(velocity, x0, tolerance, dt0=None):
    """The end of the flow by `Tsit5`, and the number of steps."""
    sol = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, x, args: velocity(t, x, None)), dfx.Tsit5(), 0.0, 1.0, dt0, x0,
        stepsize_controller=dfx.PIDController(tolerance, tolerance), throw=False, saveat=dfx.SaveAt(t1=True),
    )  # fmt: skip
    return sol.ys[-1], sol.stats["num_steps"]
