"""Loops that are timed: fmkit's trainer, the step of torchcfm's CIFAR-10 script, sampling by either; the matrix rate.

Each returns the seconds of some windows, one after the other, that follow on a window that does not count. A GPU is
waited for where a window begins and ends, nowhere else.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fmkit
from benchmarks.images.networks import SHAPE, network, torchcfms
from fmkit.training import Callback

# The script's numbers.
LR, WARMUP, CLIP, EMA, SIGMA = 2e-4, 5000, 1.0, 0.9999, 0.0
IMAGES = 2048  # in memory, on the device


@dataclass(frozen=True)
class Task:
    """What every loop does.

    Attributes:
        network: its name.
        batch: images at once.
        device: where.
        steps: of training, or evaluations for a batch of samples.
        windows: that count.
        warm: steps of training before them.
    """

    network: str
    batch: int
    device: torch.device
    steps: int
    windows: int
    warm: int = 3

    def images(self) -> Tensor:
        """Random numbers of the size that images have in a network's units."""
        return 0.5 * torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(0)).to(self.device)

    def take(self, step: Callable[[], Any], steps: int, warm: int) -> tuple[float, ...]:
        """Seconds of a step, in each window of `steps`."""
        for _ in range(warm):
            step()
        times = [now(self.device)]
        for _ in range(self.windows):
            for _ in range(steps):
                step()
            times.append(now(self.device))
        return differences(times, steps)


class Windows(Callback):
    """The times between the windows of a run of fmkit's trainer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.times = task, []  # type: ignore[var-annotated]

    def on_step(self, run: Any) -> None:
        done = run.step - self.task.warm
        if done >= 0 and done % self.task.steps == 0:
            self.times.append(now(run.device))


def now(device: torch.device) -> float:
    """The time at which the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def differences(times: list[float], steps: int) -> tuple[float, ...]:
    """Seconds of a step between each time and the next."""
    return tuple((b - a) / steps for a, b in itertools.pairwise(times))


def trainer(task: Task, options: dict[str, Any], **settings: Any) -> tuple[float, ...]:
    """Seconds of a step of fmkit's trainer; options are the network's."""
    watch = Windows(task)
    chosen = fmkit.Settings(
        steps=task.warm + task.windows * task.steps,
        batch_size=task.batch,
        lr=LR,
        warmup=WARMUP,
        clip=CLIP,
        ema=EMA,
        device=str(task.device),
        loss_floor=False,
        **settings,
    )
    made = network(task.network, **options)
    fmkit.Trainer(fmkit.paths.CondOT(), made, settings=chosen, callbacks=[watch]).fit(task.images())
    return differences(watch.times, task.steps)


def torchcfm(task: Task, peer: Any) -> tuple[float, ...]:
    """Seconds of a step of torchcfm's script, without coupling, on images that are on the device already."""
    images, made = task.images(), torchcfms(task.network, peer).to(task.device)
    average = copy.deepcopy(made)
    optimizer = torch.optim.Adam(made.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, WARMUP) / WARMUP)
    matching = peer.ConditionalFlowMatcher(sigma=SIGMA)

    def step() -> None:
        optimizer.zero_grad()
        x1 = images[torch.randint(len(images), (task.batch,), device=task.device)]
        t, x, velocity = matching.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = torch.mean((made(t, x) - velocity) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        weights = made.state_dict()
        for name, mean in average.state_dict().items():
            mean.data.copy_(mean.data * EMA + weights[name].data * (1 - EMA))

    return task.take(step, task.steps, task.warm)


def sampler(task: Task, options: dict[str, Any], precision: str = "float32", compile: Any = False) -> tuple[float, ...]:
    """Seconds of a batch of samples, by Euler's method; options are the network's."""
    solver, source = fmkit.solvers.Euler(task.steps), fmkit.sources.Gaussian()
    flow = fmkit.Flow(source, network(task.network, **options), solver, SHAPE).to(task.device)
    half = precision == "bfloat16"

    def draw() -> None:
        with torch.autocast(task.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            flow.sample(task.batch, compile=compile)

    return task.take(draw, 1, 2)


def torchcfms_sampler(task: Task, peer: Any) -> tuple[float, ...]:
    """The same with torchcfm's network, in a loop that does nothing else."""
    made = torchcfms(task.network, peer).to(task.device).eval()
    times = torch.linspace(0, 1, task.steps + 1, device=task.device)

    @torch.no_grad()
    def draw() -> None:
        x = torch.randn(task.batch, *SHAPE, device=task.device)
        for t in times[:-1]:
            x = x + made(t, x) / task.steps

    return task.take(draw, 1, 2)


def products(device: torch.device, size: int, windows: int, precision: str) -> tuple[float, ...]:
    """Seconds of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    # Enough before them for a GPU to leave its idle clock: a rate that is too low would flatter every share of it.
    return Task("", 0, device, 0, windows).take(lambda: a @ b, 20, 200)
