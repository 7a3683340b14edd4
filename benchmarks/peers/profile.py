"""Where a training step's time goes: fmkit's trainer beside a hand-written loop of the same work, stage by stage.

Each stage is a function that both loops call, or one of them; a stopwatch stands before it. What no stopwatch sees is
the rest: for the hand-written loop its interpolation and its loss, for the trainer what it does between the stages.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch

import fmkit
from benchmarks.peers import loops
from benchmarks.peers.contest import rotated
from benchmarks.peers.loops import Task
from benchmarks.peers.results import Row
from fmkit.training.pairing import Pairing
from fmkit.training.state import Run

SECTION = "profile"
BATCH = 256
REST = "the rest"
STAGES: dict[str, list[tuple[Any, str]]] = {
    "drawing x1, and x0 in the trainer": [(Pairing, "pairs"), (Task, "draw")],
    "drawing the times": [(fmkit.objectives.UniformTime, "sample")],
    "the path's points and velocities": [(fmkit.paths.CondOT, "sample")],
    "the network, forward": [(loops.Network, "forward")],
    "backward": [(torch.Tensor, "backward")],
    "optimizer, clipping, averaging": [
        (Run, "update"),
        (torch.optim.AdamW, "step"),
        (torch.optim.AdamW, "zero_grad"),
        (torch.nn.utils, "clip_grad_norm_"),
        (torch, "_foreach_lerp_"),
    ],
}


def rows(*, repeats: int, steps: int, seed: int = 0) -> Iterator[Row]:
    """Seconds a step of each stage, with averaging and clipping."""
    data = fmkit.data.EightGaussians().load(seed).train.x.float().contiguous()
    task = Task(data, BATCH, steps)
    work = {
        "fmkit": partial(loops.trainer, task, ema=loops.EMA, clip=loops.CLIP),
        "bare loop": partial(loops.bare, task, averaged=True),
    }
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for loop in work.values():
        loop()
    for turn in range(repeats):
        for name in rotated(list(work), turn):
            for stage, taken in stages(work[name], task).items():
                seconds[name, stage].append(taken)
    for name in work:
        for stage in (*STAGES, REST):
            yield Row(SECTION, name, stage, data.shape[1], BATCH, None, tuple(seconds[name, stage]))


def stages(loop: Callable[[], float], task: Task) -> dict[str, float]:
    """Seconds a step of a loop's run, by stage: the stopwatches see the first steps too, the loop's own does not."""
    taken = dict.fromkeys(STAGES, 0.0)
    with ExitStack() as watched:
        for stage, functions in STAGES.items():
            for owner, name in functions:
                watched.enter_context(mock.patch.object(owner, name, _watched(getattr(owner, name), stage, taken)))
        whole = loop()
    each = {stage: seconds / (task.warm + task.steps) for stage, seconds in taken.items()}
    return {**each, REST: whole / task.steps - sum(each.values())}


def _watched(function: Callable[..., Any], stage: str, taken: dict[str, float]) -> Callable[..., Any]:
    """The function, or the iterator that it makes, with a stopwatch; within another stage it does not count."""

    def timed(call: Callable[[], Any]) -> Any:
        before = sum(taken.values())
        began = time.perf_counter()
        try:
            return call()
        finally:
            taken[stage] += time.perf_counter() - began - (sum(taken.values()) - before)

    def call(*args: Any, **kwargs: Any) -> Any:
        made = timed(lambda: function(*args, **kwargs))
        return _each(made, timed) if isinstance(made, Iterator) else made

    return call


def _each(items: Iterator[Any], timed: Callable[[Callable[[], Any]], Any]) -> Iterator[Any]:
    end = object()
    while (item := timed(lambda: next(items, end))) is not end:
        yield item
