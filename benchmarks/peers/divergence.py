"""One evaluation of a field with its divergence: fmkit's, exact and stochastic, against flow_matching's own.

flow_matching takes the divergence inside of `ODESolver.compute_likelihood`, in the function that it hands to
torchdiffeq. Here that very function is taken, by a stand-in for torchdiffeq that integrates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fmkit
from benchmarks.peers.contest import turns
from benchmarks.peers.loops import Network
from benchmarks.peers.results import Note, Row
from fmkit.randomness import stream
from fmkit.shapes import batch_time

SECTION = "divergence"
KINDS = ("exact", "Hutchinson")
DIMENSIONS, BATCHES = (2, 16, 64, 256), (1, 8, 64, 512)
QUICK_DIMENSIONS, QUICK_BATCHES = (2, 16), (8,)
TIME = 0.5

Field = Callable[[Any, Tensor], Tensor]
Evaluate = Callable[[], tuple[Tensor, Tensor]]  # the velocity (B, D) and its divergence (B,)
Make = Callable[[str, Field, Tensor], Evaluate]


def contestants(peers: Mapping[str, Any]) -> dict[str, Make]:
    """Who takes divergences."""
    found: dict[str, Make] = {"fmkit": own}
    if "flow_matching" in peers:
        found["flow_matching"] = lambda kind, f, x: flow_matching(kind, f, x, peers["flow_matching"])
    return found


def own(kind: str, f: Field, x: Tensor) -> Evaluate:
    """fmkit's divergence, as `Flow.log_prob` evaluates it at every stage."""
    chosen = fmkit.ExactDivergence() if kind == "exact" else fmkit.HutchinsonDivergence()
    rate = chosen.rate(f, x, stream(0, "benchmark-probes"))

    @torch.no_grad()
    def evaluate() -> tuple[Tensor, Tensor]:
        velocity, estimates = rate(TIME, x)
        return velocity, estimates[:, 0]

    return evaluate


def flow_matching(kind: str, f: Field, x: Tensor, peer: Any) -> Evaluate:
    """What flow_matching's solver evaluates at every stage of a likelihood."""
    taken: list[Callable[..., Any]] = []

    def integrate(dynamics: Callable[..., Any], start: tuple[Tensor, ...], *args: Any, **options: Any) -> Any:
        taken.append(dynamics)
        return [value[None] for value in start]

    solver = peer.ODESolver(velocity_model=lambda x, t: f(t, x))
    with mock.patch.object(peer.ode_solver, "odeint", integrate):
        solver.compute_likelihood(
            x, log_p0=lambda x: torch.zeros(len(x)), step_size=None, exact_divergence=kind == "exact"
        )
    time, state = torch.tensor(TIME), (x.clone(), torch.zeros(len(x)))

    @torch.no_grad()
    def evaluate() -> tuple[Tensor, Tensor]:
        velocity, divergence = taken[0](time, state)
        return velocity, divergence

    return evaluate


def rows(contestants: Mapping[str, Make], *, repeats: int, quick: bool = False) -> Iterator[Row | Note]:
    """Seconds of an evaluation of a network of three hidden layers of 64, and how far its exact divergence is off."""
    for kind in KINDS:
        for dim in QUICK_DIMENSIONS if quick else DIMENSIONS:
            f = field(dim)
            for batch in QUICK_BATCHES if quick else BATCHES:
                x = torch.randn(batch, dim, generator=stream(0, "benchmark-divergence", dim))
                work = {name: make(kind, f, x) for name, make in contestants.items()}
                exact = jacobian_trace(f, x[:1])
                off = {name: relative(evaluate()[1][:1], exact) for name, evaluate in work.items()}
                for name, seconds in turns(work, repeats, at_least=0.005 if quick else 0.02).items():
                    yield Row(SECTION, name, kind, dim, batch, None, seconds, off[name] if kind == "exact" else None)


def field(dim: int) -> Field:
    """The velocity of an untrained network, at one time or one for each point."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(dim).requires_grad_(False)
    return lambda t, x: network(batch_time(t, x), x)


def jacobian_trace(f: Field, x: Tensor) -> Tensor:
    """`(1,)`: the divergence at one point, entry by entry of the whole Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda y: f(TIME, y), x)
    return jacobian[0, :, 0].diagonal().sum()[None]


def relative(value: Tensor, exact: Tensor) -> float:
    """|value - exact| / |exact|."""
    return float((value - exact).norm() / exact.norm())
