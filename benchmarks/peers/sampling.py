"""Sampling: the time that fmkit and flow_matching's `ODESolver` take for the same error, on the same field and starts.

A solver's setting (steps, or a tolerance) has an error, from a reference, and a time. Between two settings of a method
both follow a power law, so its time at any error in between is read off the line through the two in logarithms; a
library's time at that error is that of its fastest method.

Each library also runs with its field compiled: fmkit by its switch, flow_matching by a model that its user compiled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fmkit
from benchmarks.nfe import problems
from benchmarks.nfe.problems import Problem
from benchmarks.peers.contest import turns
from benchmarks.peers.loops import Network
from benchmarks.peers.results import Row, Spread, spread
from fmkit import registry
from fmkit.fields import as_field
from fmkit.sources import Gaussian

SECTION = "sampling"
BATCHES, QUICK_BATCHES = (256, 2048), (16,)
STEPS, QUICK_STEPS, EVALUATIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128), (4, 16), 128
TOLERANCES, QUICK_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), (1e-2,)
ERRORS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
METHODS = {
    "fmkit": ("euler", "midpoint", "rk3", "rk4", "ab2", "ab3", "ab4", "abm3", "abm4", "dopri5"),
    "flow_matching": ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "dopri5"),
}
COMPILED = {"fmkit": "fmkit-compiled", "flow_matching": "flow_matching-compiled"}
METHODS.update({COMPILED[who]: methods for who, methods in list(METHODS.items())})
ADAPTIVE = ("dopri5",)
STAGES = {"midpoint": 2, "heun2": 2, "rk3": 3, "heun3": 3, "rk4": 4}  # evaluations a step; all others take one
TRAINING, LEARNED = 2000, "a network"
EXACT = "8 Gaussians, exactly"


class Case(NamedTuple):
    """What is sampled from: a flow, the plain function behind it, the same compiled, and where its starts end."""

    name: str
    batch: int
    flow: fmkit.Flow
    f: Callable[[Tensor, Tensor], Tensor]
    compiled: Callable[[Tensor, Tensor], Tensor]
    problem: Problem


Make = Callable[[Case, str, float], Callable[[], Tensor]]  # (case, method, setting) -> () -> end points


def contestants(peers: Mapping[str, Any]) -> dict[str, Make]:
    """Who samples."""
    found: dict[str, Make] = {"fmkit": own, COMPILED["fmkit"]: partial(own, compile=True)}
    if "flow_matching" in peers:
        found["flow_matching"] = partial(flow_matching, peer=peers["flow_matching"])
        found[COMPILED["flow_matching"]] = partial(flow_matching, peer=peers["flow_matching"], compile=True)
    return found


def own(case: Case, method: str, setting: float, compile: bool = False) -> Callable[[], Tensor]:
    """By fmkit's flow, as `sample` does it from its starts."""
    cls = registry.load("fmkit.solvers", method)
    solver = cls(setting, setting) if method in ADAPTIVE else cls(steps=int(setting))
    return lambda: case.flow.transport(case.problem.x0, 0.0, 1.0, solver=solver, compile=compile)


def flow_matching(case: Case, method: str, setting: float, peer: Any, compile: bool = False) -> Callable[[], Tensor]:
    """By flow_matching's solver of ODEs; one of adaptive steps asks beyond the end, where there is no field."""
    f = case.compiled if compile else case.f

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return f((t.clamp(0.0, 1.0) if method in ADAPTIVE else t).expand(len(x)), x)

    solver = peer.ODESolver(velocity_model=velocity)
    x0 = case.problem.x0
    grid = torch.tensor([0.0, 1.0], dtype=x0.dtype)
    options: dict[str, float | None] = {"step_size": 1 / setting}
    if method in ADAPTIVE:
        options = {"step_size": None, "atol": setting, "rtol": setting}
    return lambda: solver.sample(x0, method=method, time_grid=grid, **options)


def rows(contestants: Mapping[str, Make], *, repeats: int, quick: bool = False) -> Iterator[Row]:
    """Seconds and errors of every method at every setting."""
    for case in cases(quick):
        settings = {
            f"{who}, {method}, {setting:g}": (who, method, setting)
            for who in contestants
            if case.name == LEARNED or who not in COMPILED.values()  # the closed form is no network, and no one graph
            for method in METHODS[who]
            for setting in _settings(method, quick)
        }
        work = {key: contestants[who](case, method, at) for key, (who, method, at) in settings.items()}
        errors = {key: case.problem.error(run()) for key, run in work.items()}
        for key, seconds in turns(work, repeats, at_least=0.0).items():
            who, method, setting = settings[key]
            yield Row(SECTION, f"{who} {method}", case.name, 2, case.batch, setting, seconds, errors[key])


def cases(quick: bool) -> Iterator[Case]:
    """The exact field of eight Gaussians on a ring, and a network trained on it, each with its end points."""
    ring = problems.mixtures()["ring"](fmkit.paths.CondOT())
    network = learned(2 if quick else TRAINING)
    for name, field, f in ((EXACT, ring, ring.velocity), (LEARNED, as_field(network), network)):
        for batch in QUICK_BATCHES if quick else BATCHES:
            there = problems.problem("", "condot", "ring", field, ring, batch, 1e-6 if quick else 1e-9)
            flow = fmkit.Flow(Gaussian(), field, event_shape=there.x0.shape[1:])
            yield Case(name, batch, flow, f, torch.compile(f), there)


def learned(steps: int) -> Network:
    """A network of three hidden layers of 64, trained by fmkit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(2)
    settings = fmkit.Settings(steps=steps, batch_size=512, loss_floor=False)
    data = fmkit.data.EightGaussians().load(0).train
    fmkit.Trainer(fmkit.paths.CondOT(), network, settings=settings, callbacks=[]).fit(data)
    return network.double().requires_grad_(False).eval()


def _settings(method: str, quick: bool) -> Sequence[float]:
    if method in ADAPTIVE:
        return QUICK_TOLERANCES if quick else TOLERANCES
    return QUICK_STEPS if quick else [n for n in STEPS if n * STAGES.get(method, 1) <= EVALUATIONS]


def fastest(rows: Iterable[Row], error: float) -> tuple[str, np.ndarray] | None:
    """The method of a library with the least median time at an error, and its seconds in every turn; None if none.

    Args:
        rows: of one library on one piece of work.
        error: that is to be had.
    """
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.contestant, []).append(row)
    found = {name: at for name, there in methods.items() if (at := at_error(there, error)) is not None}
    if not found:
        return None
    best = min(found, key=lambda name: float(np.median(found[name])))
    return best, found[best]


def at_error(rows: Sequence[Row], error: float) -> np.ndarray | None:
    """A method's seconds in every turn at an error between those of two of its settings; None if it is outside."""
    ordered = sorted(rows, key=_effort)
    for a, b in itertools.pairwise(ordered):
        if a.figure is not None and b.figure is not None and a.figure > error >= b.figure:
            share = math.log(a.figure / error) / math.log(a.figure / b.figure)
            return np.exp((1 - share) * np.log(a.seconds) + share * np.log(b.seconds))
    return None


def _effort(row: Row) -> float:
    """Steps, or one over a tolerance: what costs more is later."""
    setting = row.setting or 1.0
    return setting if setting >= 1 else 1 / setting


def at_equal_error(
    rows: Sequence[Row], errors: Sequence[float] = ERRORS, who: tuple[str, str] = ("fmkit", "flow_matching")
) -> list[tuple[str, float, str, str, Spread]]:
    """On every piece of work and at every error that both reach: (work, error, our method, theirs, ratio)."""
    found = []
    for work in dict.fromkeys(row.work for row in rows if row.section == SECTION):
        here = [row for row in rows if row.work == work]
        for error in errors:
            own, other = (fastest((r for r in here if r.contestant.startswith(f"{name} ")), error) for name in who)
            if own is not None and other is not None:
                (mine, ours), (theirs, others) = own, other
                found.append((f"{work[1]}, batch {work[3]}", error, mine, theirs, spread(others / ours)))
    return found
