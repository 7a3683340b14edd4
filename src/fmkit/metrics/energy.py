"""How straight and how short a flow's ways are.

    K = E integral of |v(t, x_t)|² dt                        the path energy, along the flow's own trajectories x_t
    S = E integral of |v(t, x_t) - (x_1 - x_0)|² dt          the curvature; 0 where every way is straight and even
                                                             (Liu et al., arXiv 2209.03003, the straightness S(Z))
    S = K - E |x_1 - x_0|²                                   since x_1 - x_0 is the integral of v
    NPE = |K - W2²(q0, q1)| / W2²(q0, q1)                    (Tong et al., arXiv 2302.00482, normalized path energy)

No flow from q0 to q1 has less energy than W2²(q0, q1) (Benamou and Brenier 2000), so NPE is 0 for the optimal one.
The interval is taken for [0, 1] whatever the field's: a path that begins at 1e-5 loses as much of the integral.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fmkit.arguments import check_number, checked
from fmkit.errors import ArgumentError, CombinationError
from fmkit.flow import Flow
from fmkit.shapes import check_batch, sum_event
from fmkit.solvers import Solver


class PathEnergy(NamedTuple):
    """Where points ended, and what their ways took; in the units that the model sees.

    Attributes:
        x: `(B, *event)` points at the end.
        energy: `(B,)` integrals of |v|² along the ways, in float64; their mean is K.
        displacement: `(B,)` |x_1 - x_0|², in float64: the least energy that joins the two ends.
    """

    x: Tensor
    energy: Tensor
    displacement: Tensor

    @property
    def curvature(self) -> Tensor:
        """`(B,)` integrals of |v - (x_1 - x_0)|² along the ways; their mean is S."""
        return self.energy - self.displacement


@checked
def path_energy(flow: Flow, x0: Tensor, cond: Any = None, *, solver: Solver | None = None) -> PathEnergy:
    """Carries points from the beginning of the flow to its end, and takes the energy of each way.

    The energy rides beside the point through the solver. Under Euler it is the sum of dt |v|² over the steps, and the
    curvature that of dt |v - (x_1 - x_0)|², exactly; an adaptive solver keeps its tolerance on it too.

    Args:
        flow: any flow of ODEs in flat space.
        x0: `(B, *event)` points at the beginning, in the units of the model; usually draws from the source.
        cond: a condition for each, or one label for all.
        solver: instead of the flow's own.

    Raises:
        ArgumentError: for points of another shape, or not finite, or as many conditions as do not fit.
        CombinationError: for a flow on a manifold, or a solver that does not read the velocity.
        SolverError: if the integration does not reach its end.

    Examples:
        >>> import fmkit, torch
        >>> oracle = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[3.0, 4.0]], std=1.0)
        >>> flow = fmkit.Flow(fmkit.sources.Gaussian(), oracle, event_shape=2)
        >>> ways = path_energy(flow, torch.zeros(1, 2, dtype=torch.float64))
        >>> round(ways.energy.item(), 3), round(ways.curvature.item(), 3)  # from the mean to the mean, straight
        (25.0, 0.0)
    """
    solver = flow.solver if solver is None else solver
    if solver.reads != "velocity":
        raise CombinationError(
            f"{type(solver).__name__} reads {solver.reads!r}: a path energy is of an ODE, so it needs a solver of ODEs"
        )
    if not flow.field.euclidean:
        raise CombinationError("this flow lives on a manifold, where a difference of points is no way between them")
    x0 = flow._check_points(check_batch(x0, "x0"))
    x0 = x0.to(flow._precision(x0.dtype))
    v = flow._bound("velocity", flow._condition(cond, len(x0)))

    def widened(t: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity = v(t, state[0])
        return velocity, sum_event(velocity.square())[:, None]

    with flow._mode(False):  # as when the flow samples
        x1, energy = solver.solve(widened, (x0, x0.new_zeros(len(x0), 1)), flow.interval).final
    return PathEnergy(x1, energy[:, 0].double(), sum_event((x1.double() - x0.double()).square()))


@checked
def normalized_path_energy(energy: float, squared_distance: float) -> float:
    """NPE = |K - W2²| / W2², for a path energy K >= 0 and the squared distance W2² > 0 of the two ends.

    Raises:
        ArgumentError: for a negative energy, or a distance that is not positive.
    """
    if not check_number("energy", energy) >= 0:
        raise ArgumentError(f"energy is {energy}, expected 0 or more")
    if not check_number("squared_distance", squared_distance) > 0:
        raise ArgumentError(f"squared_distance is {squared_distance}, expected a positive W2²")
    return abs(energy - squared_distance) / squared_distance
