"""Entropic optimal transport within a batch, and its partial form.

    P = argmin over plans of <P, C> + e KL(P | a b^T),   C_ij = |x0_i - x1_j|²            (Cuturi, arXiv 1306.0895)

with every row's mass 1/n. Its solution is P_ij = a_i b_j exp((f_i + g_j - C_ij) / e). With e = 2 sigma² it is the plan
of the Schrödinger bridge of that noise ([SF]2M, Tong et al., arXiv 2307.03672, proposition 3.1).

A partial plan moves the mass m < 1 where that is cheapest. Either side gets one more point, at no distance from any, of
mass 1 - m, and the two do not meet: what is left behind goes there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_number
from fmkit.couplings.assignment import squared_distances
from fmkit.couplings.base import Coupling, check_batches
from fmkit.errors import ArgumentError

# The default entropy, in units of the batch's mean squared distance.
RELATIVE = 0.05
ANNEALING = 0.25
SWEEPS = 20
# Sweeps go further than Sinkhorn's own, by this power: 2 to 20 times fewer of them are needed at small entropies.
OVER_RELAXATION = 1.8
# Rounds of sweeps before Newton's steps, which cost about as much each.
PATIENCE = 10
# Up to so many points there are Newton's steps.
NEWTON = 4096
# Scalings between exp(-REACH) and exp(REACH) are far from the ends of float64.
REACH = 200.0


class Sinkhorn(Coupling):
    """Draws from the entropic plan: each x1 once, and an x0 for it from the plan's column.

    Every x0 is met once on average. The plan is computed in float64 where the samples are, from potentials in the log
    domain, so nothing can underflow; one that is not reached is an error, never another plan.

    Args:
        epsilon: the entropy e, in units of squared distance, above 0; 2 sigma² for a Schrödinger bridge. By default
            0.05 of the mean squared distance of each batch.
        mass: the part of either batch that is moved, in (0, 1]; of n samples, round(mass n) pairs are returned.
        tolerance: how far the plan's marginals may be from what they should be, as the sum of the differences.
        iterations: after how many sweeps to give up.

    Raises:
        ArgumentError: on use, if the plan is not found within `iterations`, or `mass` leaves no pair.

    Examples:
        >>> import torch
        >>> from fmkit.couplings import Sinkhorn
        >>> x = torch.arange(6.0)[:, None]
        >>> Sinkhorn(epsilon=0.01).pair(x, x.flip(0), generator=torch.Generator().manual_seed(0))
        (tensor([5, 4, 3, 2, 1, 0]), tensor([0, 1, 2, 3, 4, 5]))
    """

    def __init__(
        self, epsilon: float | None = None, mass: float = 1.0, tolerance: float = 1e-4, iterations: int = 20_000
    ) -> None:
        super().__init__()
        for name, value, most in (("epsilon", epsilon, torch.inf), ("mass", mass, 1), ("tolerance", tolerance, 1)):
            if value is not None and not 0 < check_number(name, value) <= most:
                raise ArgumentError(f"{name} is {value}, expected a number above 0" + (" and at most 1" * (most == 1)))
        self.epsilon, self.mass, self.tolerance = epsilon, mass, tolerance
        self.iterations = check_count("iterations", iterations)

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        check_batches(x0, x1, cond0, cond1, generator)
        n, count = len(x1), round(self.mass * len(x1))
        if count == 0:
            raise ArgumentError(f"a mass of {self.mass} moves none of {n} samples; expected at least {0.5 / n:.3g}")
        plan = self._plan(x0.detach().reshape(n, -1), x1.detach().reshape(n, -1), count)
        i1 = torch.arange(n, device=x1.device)
        if count < n:
            i1 = _systematic(plan.sum(0), count, generator)
        cumulative = plan.T[i1].cumsum(1)
        level = _uniform(len(i1), x1.device, generator) * cumulative[:, -1]
        return torch.searchsorted(cumulative, level[:, None], right=True)[:, 0].clamp_(max=n - 1), i1

    def _plan(self, x0: Tensor, x1: Tensor, count: int) -> Tensor:
        """`(n, n)`, of the mass count / n."""
        n = len(x0)
        unit = max(float(x.double().abs().amax()) for x in (x0, x1)) or 1.0
        a, b = (x.double() / unit for x in (x0, x1))
        cost = squared_distances(a - b.mean(0), b - b.mean(0)).clamp_(min=0)
        epsilon = RELATIVE * float(cost.mean()) if self.epsilon is None else self.epsilon / unit / unit
        weights = cost.new_full((n,), 1 / n)
        if count < n:
            cost = torch.nn.functional.pad(cost, (0, 1, 0, 1))
            cost[n, n] = torch.inf
            weights = torch.cat((weights, weights.new_tensor([1 - count / n])))
        if epsilon == 0:  # the points are all one, and so is every plan
            epsilon = 1.0
        return entropic_plan(cost, weights, epsilon, self.tolerance, self.iterations)[:n, :n]


def entropic_plan(cost: Tensor, weights: Tensor, epsilon: float, tolerance: float, iterations: int) -> Tensor:
    """The `(n, n)` plan with these weights as both marginals: the rows' to rounding, the columns' to `tolerance`.

    The potentials are annealed from the scale of the cost down to `epsilon`. Each round begins with a sweep in the log
    domain; cheaper ones by products with its kernel follow, and their scaling is absorbed into the potentials
    (Schmitzer, arXiv 1610.06519). They are over-relaxed (Thibault et al., arXiv 1711.01851), and where that leads away
    plain ones follow. At small entropies sweeps alone may take thousands of rounds: after a few of them Newton's steps
    on the dual take their turn, as long as each brings the plan nearer.

    Args:
        cost: `(n, n)`, not negative; infinite where nothing may go.
        weights: `(n,)`, positive.
        epsilon: in units of the cost.
        tolerance: the sum of the differences between the columns' marginals and `weights`.
        iterations: sweeps to give up after.

    Raises:
        ArgumentError: if the plan is not reached.
    """
    log_weights, potential = weights.log(), torch.zeros_like(weights)
    largest = float(cost[torch.isfinite(cost)].max())
    e, done, rounds, before = max(epsilon, largest), 0, 0, torch.inf
    plan = torch.empty_like(cost)
    while True:
        torch.sub(potential + e * log_weights, cost, out=plan)
        plan.sub_(plan.amax(1, keepdim=True)).div_(e).exp_()
        plan.mul_((weights / plan.sum(1))[:, None])  # now the rows are right, whatever the potential is
        missing = weights - plan.sum(0)
        error = float(missing.abs().sum())
        if e == epsilon and error <= tolerance:
            return plan
        if done >= iterations:
            raise ArgumentError(
                f"the entropic plan is not reached after {done} sweeps: its marginals are {error:.1e} off, expected "
                f"{tolerance:.1e}. Its epsilon is {epsilon / largest:.1e} of the largest cost; take a greater one, "
                "more iterations, or OptimalTransport"
            )
        if e > epsilon and error < 0.1:  # good enough for a start at the next temperature
            e, rounds, before = max(epsilon, ANNEALING * e), 0, torch.inf
            continue
        nearer = error < before
        if nearer and error < 0.1 and rounds >= PATIENCE and len(cost) <= NEWTON:
            step = _newton(plan, weights, missing)
        else:
            step = _scaling(plan, weights, OVER_RELAXATION if nearer else 1.0).log()
        potential = potential + e * step
        done, rounds, before = done + SWEEPS, rounds + 1, error


def _newton(plan: Tensor, weights: Tensor, missing: Tensor) -> Tensor:
    """The step, in units of e, that makes the columns right to first order, at most 1 anywhere.

    With the rows kept right the columns change by (diag(P^T 1) - P^T diag(1/weights) P) step. The matrix is positive
    semidefinite, singular along constants at least: hence the small number on its diagonal.
    """
    matrix = -(plan.T @ (plan / weights[:, None]))
    matrix.diagonal().add_(plan.sum(0) + 1e-12 + 1e-3 * float(missing.abs().max()))
    step = torch.linalg.solve(matrix, missing)
    return step.nan_to_num(0, 0, 0) / max(1.0, float(step.abs().max().nan_to_num(1)))


def _scaling(plan: Tensor, weights: Tensor, power: float) -> Tensor:
    """The columns' scaling after SWEEPS more sweeps on the plan, or fewer: as long as all are within REACH."""
    u, v = torch.ones_like(weights), torch.ones_like(weights)
    for _ in range(SWEEPS):
        new = weights / (u @ plan)
        if not bool((new.log().abs() < REACH).all()):
            # A column that has no mass in float64: a step in the log domain, as long as is safe, brings it nearer.
            return new.log().nan_to_num(REACH, REACH, -REACH).clamp(-REACH, REACH).exp()
        v = v * (new / v) ** power
        u = u * (weights / (plan @ v) / u) ** power
    return v


def _systematic(chances: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` different rows, each with a chance in proportion to `chances`, from one uniform number."""
    steps = chances.cumsum(0)
    at = (torch.arange(count, device=chances.device) + _uniform(1, chances.device, generator)) * (steps[-1] / count)
    return torch.searchsorted(steps, at, right=True).clamp_(max=len(chances) - 1)


def _uniform(n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    where = device if generator is None else generator.device
    return torch.rand(n, generator=generator, dtype=torch.float64, device=where).to(device)
