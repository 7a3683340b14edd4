"""Exact pairings of a batch: fmkit's optimal transport against torchcfm's plan sampler and torchebm's auction.

How far a pairing is from the optimum is bounded without any solver. Potentials u, v with u_i + v_j <= C_ij bound every
pairing's cost from below by sum u + sum v; from a permutation pi, Bellman and Ford's recursion

    v_j <- min(v_j, min_i C_ij - C_i,pi(i) + v_pi(i)),    u_i = min_j C_ij - v_j

ends with potentials that reach its cost exactly if it is optimal, and gives a valid bound wherever it is stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fmkit
from benchmarks.peers.contest import turns
from benchmarks.peers.results import Note, Row
from fmkit.randomness import stream

SECTION = "pairing"
BATCHES, DIMENSIONS, DATA = (128, 256, 512, 1024, 2048), (2, 64, 784), ("Gaussian", "clustered")
QUICK_BATCHES, QUICK_DIMENSIONS = (128,), (2, 64)
PROBLEMS = 4  # batches in rotation, so that no figure hangs on one
CLUSTERS, RADIUS = 8, 5.0  # the radius in units of a cluster's own
PATIENCE, OPTIONAL = 1.0, ("torchebm",)  # seconds that one pairing may take, of those that no goal is about
SWEEPS, TIGHT = 500, 1e-9

Pair = Callable[[Tensor, Tensor], Any]
Plan = Callable[[Tensor, Tensor], np.ndarray]  # (B, B), rows of x0 by rows of x1, sum B


def contestants(peers: Mapping[str, Any]) -> dict[str, Pair]:
    """What pairs a batch as in training."""
    found: dict[str, Pair] = {"fmkit": fmkit.couplings.OptimalTransport().pair}
    if "torchcfm" in peers:
        found["torchcfm"] = peers["torchcfm"].OTPlanSampler(method="exact").sample_plan
    if "torchebm" in peers:
        found["torchebm"] = peers["torchebm"].ExactOTCoupling()
    return found


def plans(peers: Mapping[str, Any]) -> dict[str, Plan]:
    """The plans behind them, for their cost; torchcfm's before anything is drawn from it."""
    coupling = fmkit.couplings.OptimalTransport()

    def own(x0: Tensor, x1: Tensor) -> np.ndarray:
        plan = np.zeros((len(x0), len(x1)))
        plan[tuple(i.numpy() for i in coupling.pair(x0, x1))] = 1.0
        return plan

    found: dict[str, Plan] = {"fmkit": own}
    if "torchcfm" in peers:
        sampler = peers["torchcfm"].OTPlanSampler(method="exact")
        found["torchcfm"] = lambda x0, x1: len(x0) * sampler.get_map(x0, x1)
    return found


def rows(
    contestants: Mapping[str, Pair], plans: Mapping[str, Plan], *, repeats: int, quick: bool = False
) -> Iterator[Row | Note]:
    """Seconds of a pairing, and how far above the optimum its cost may be."""
    for data in DATA:
        for dim in QUICK_DIMENSIONS if quick else DIMENSIONS:
            quick_enough = dict(contestants)
            for batch in QUICK_BATCHES if quick else BATCHES:
                problems = [problem(data, dim, batch, k) for k in range(PROBLEMS)]
                excess, warned = excesses(plans, problems)
                work = {name: in_rotation(pair, problems) for name, pair in quick_enough.items()}
                seconds = turns(work, repeats, at_least=0.0, patience=PATIENCE, optional=OPTIONAL)
                for name, taken in seconds.items():
                    yield Row(SECTION, name, data, dim, batch, None, taken, excess.get(name))
                at = f"{data}, d = {dim}, batch {batch}"
                for name in quick_enough.keys() - seconds.keys():
                    del quick_enough[name]
                    yield Note(SECTION, f"{name} is left out from {at} on: it takes more than {PATIENCE:g} second.")
                for name, said in warned.items():
                    yield Note(SECTION, f"{name}'s solver warns at {at}: {said}")


def problem(data: str, dim: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise and data `(batch, dim)`: one Gaussian, or eight round clusters at random places on a sphere."""
    draw = stream(seed, f"benchmark-pairing-{data}-{dim}-{batch}")
    x0, x1 = torch.randn(2, batch, dim, generator=draw)
    if data == "clustered":
        centres = torch.randn(CLUSTERS, dim, generator=draw)
        centres *= RADIUS * (dim / 2) ** 0.5 / centres.norm(dim=1, keepdim=True)
        x1 = x1 + centres[torch.randint(CLUSTERS, (batch,), generator=draw)]
    return x0, x1


def in_rotation(pair: Pair, problems: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The work of pairing the next problem at every call; everyone meets the same one in a turn."""
    calls = 0

    def work() -> None:
        nonlocal calls
        x0, x1 = problems[calls % len(problems)]
        calls += 1
        pair(x0, x1)

    return work


def excesses(
    plans: Mapping[str, Plan], problems: list[tuple[Tensor, Tensor]]
) -> tuple[dict[str, float], dict[str, str]]:
    """The greatest relative excess of each plan's cost over a lower bound, and what was warned of the first time."""
    excess = dict.fromkeys(plans, 0.0)
    warned: dict[str, str] = {}
    for x0, x1 in problems:
        cost = squared_distances(x0, x1)
        found = {}
        for name, plan in plans.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found[name] = plan(x0, x1)
            if caught:
                warned.setdefault(name, str(caught[0].message).strip().partition("\n")[0])
        costs = {name: float((cost * plan).sum()) for name, plan in found.items()}
        least = 0.0
        for name in sorted(costs, key=costs.__getitem__):  # the cheapest has the best bound
            least = max(least, lower_bound(cost, found[name]))
            if costs[name] <= least * (1 + TIGHT):
                break
        excess = {name: max(excess[name], costs[name] / least - 1) for name in plans}
    return excess, warned


def squared_distances(x0: Tensor, x1: Tensor) -> np.ndarray:
    """`(B, B)` in float64, rows of x0 by rows of x1."""
    return torch.cdist(x0.double(), x1.double()).square().numpy()


def lower_bound(cost: np.ndarray, plan: np.ndarray) -> float:
    """A bound from below on the cost of every permutation, sharp if the plan is the best one."""
    partner = plan.argmax(1)
    reduced = cost - cost[np.arange(len(cost)), partner][:, None]
    v = np.zeros(len(cost))
    for _ in range(SWEEPS):
        better = np.minimum(v, (reduced + v[partner][:, None]).min(0))
        if np.array_equal(better, v):
            break
        v = better
    return float((cost - v).min(1).sum() + v.sum())
