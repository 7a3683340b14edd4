"""Training loops: fmkit's trainer, hand-written ones as the limit, and those that the peers' documents show.

All train the same network from the same weights, at the same rate, on batches drawn from the same samples in memory.
Every loop takes `warm` steps first, which do not count, and returns the seconds that the others took.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fmkit
from fmkit.training import Callback

LR, CLIP, EMA, SIGMA = 1e-3, 1.0, 0.999, 0.0


class Network(nn.Module):
    """The velocity v(t, x): three hidden layers of 64 on [x, t], as in Tong et al. (2024), or another width."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        sizes = [dim + 1, width, width, width]
        hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SELU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, dim))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None].to(x.dtype)], 1))


@dataclass(frozen=True)
class Task:
    """What every loop trains.

    Attributes:
        data: `(N, D)` samples.
        batch: samples a step.
        steps: that count.
        warm: before them.
        seed: of the first weights.
    """

    data: Tensor
    batch: int
    steps: int
    warm: int = 20
    seed: int = 0

    def network(self) -> Network:
        """The network before training, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Network(self.data.shape[1])

    def draw(self) -> Tensor:
        """A batch of data, as hand-written loops draw it."""
        return self.data[torch.randint(len(self.data), (self.batch,))]

    def take(self, step: Callable[[], Any]) -> float:
        """Take the steps of a hand-written loop; the seconds of those that count."""
        for _ in range(self.warm):
            step()
        began = time.perf_counter()
        for _ in range(self.steps):
            step()
        return time.perf_counter() - began


class Stopwatch(Callback):
    """Seconds from the end of the step `warm` to the end of the run."""

    def __init__(self, warm: int) -> None:
        super().__init__()
        self.warm, self.began, self.seconds = warm, 0.0, 0.0

    def on_step(self, run: Any) -> None:
        if run.step == self.warm:
            self.began = time.perf_counter()

    def on_end(self, run: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def trainer(task: Task, coupling: fmkit.couplings.Coupling | None = None, **settings: Any) -> float:
    """fmkit's Trainer without callbacks but the stopwatch."""
    watch = Stopwatch(task.warm)
    numbers = {"lr": LR, "loss_floor": False, "ema": 0.0, **settings}
    chosen = fmkit.Settings(steps=task.warm + task.steps, batch_size=task.batch, **numbers)
    path = fmkit.paths.CondOT()
    fmkit.Trainer(path, task.network(), coupling=coupling, settings=chosen, callbacks=[watch]).fit(task.data)
    return watch.seconds


def bare(task: Task, *, averaged: bool = False) -> float:
    """Nothing but the mathematics, with fused AdamW; with the same averaging and clipping as the trainer if asked."""
    network = task.network()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)
    average: list[Tensor] = list(copy.deepcopy(network).requires_grad_(False).parameters())

    def step() -> None:
        x1 = task.draw()
        x0, t = torch.randn_like(x1), torch.rand(task.batch)
        at = t[:, None]
        loss = (network(t, (1 - at) * x0 + at * x1) - (x1 - x0)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if averaged:
            nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        if averaged:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - EMA)

    return task.take(step)


def torchcfm(task: Task, peer: Any, matcher: str = "ConditionalFlowMatcher") -> float:
    """The loop of the example that torchcfm's README begins with."""
    network = task.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    matching = getattr(peer, matcher)(sigma=SIGMA)

    def step() -> None:
        optimizer.zero_grad()
        x1 = task.draw()
        t, x, velocity = matching.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        answer = network.net(torch.cat([x, t[:, None]], -1))
        loss = torch.mean((answer - velocity) ** 2)
        loss.backward()
        optimizer.step()

    return task.take(step)


def flow_matching(task: Task, peer: Any) -> float:
    """The loop of the example that flow_matching's README leads to."""
    network = task.network()
    path = peer.AffineProbPath(scheduler=peer.CondOTScheduler())
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        x1 = task.draw()
        x0, t = torch.randn_like(x1), torch.rand(x1.shape[0])
        sample = path.sample(t=t, x_0=x0, x_1=x1)
        loss = torch.pow(network(sample.t, sample.x_t) - sample.dx_t, 2).mean()
        loss.backward()
        optimizer.step()

    return task.take(step)


def torchebm(task: Task, peer: Any) -> float:
    """The loop of torchebm's README."""
    network = task.network()
    interpolant = peer.LinearInterpolant()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)

    def step() -> None:
        x1 = task.draw()
        x0, t = torch.randn_like(x1), torch.rand(x1.shape[0])
        x, velocity = interpolant.interpolate(x0, x1, t)
        loss = (network(t, x) - velocity).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return task.take(step)
