"""The sections of the benchmark: on which device what is measured, and how its rows are shown."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.images import loops, tables
from benchmarks.images.loops import Task
from benchmarks.images.networks import PIXELS, cost, network, torchcfms
from benchmarks.peers.results import Note, Row
from benchmarks.peers.sections import Section

NETWORKS, TRAINING, SAMPLING, MATMUL = "networks", "training", "sampling", tables.MATMUL
TORCHCFM = tables.TORCHCFM
Loop = Callable[[Task], tuple[float, ...]]

HALF = {"precision": "bfloat16"}
LAST = {"channels_last": True}
# What each contestant sets, of the network and of the trainer.
TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fmkit": ({}, {}),
    "fmkit, compiled": ({}, {"compile": True}),
    "fmkit, bfloat16": ({}, HALF),
    "fmkit, bfloat16, channels_last": (LAST, HALF),
    "fmkit, bfloat16, compiled": ({}, {**HALF, "compile": True}),
    "fmkit, bfloat16, channels_last, compiled": (LAST, {**HALF, "compile": True}),
    "fmkit, bfloat16, checkpointing": ({"checkpointing": True}, HALF),
}
SAMPLED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fmkit": ({}, {}),
    "fmkit, bfloat16": ({}, HALF),
    "fmkit, bfloat16, channels_last": (LAST, HALF),
    "fmkit, bfloat16, compiled": ({}, {**HALF, "compile": True}),
    "fmkit, bfloat16, graphs": ({}, {**HALF, "compile": "graphs"}),
    "fmkit, bfloat16, channels_last, graphs": (LAST, {**HALF, "compile": "graphs"}),
}


@dataclass(frozen=True)
class Plan:
    """What is measured on a kind of device.

    Attributes:
        training: images a step, of each network.
        sampling: images at once, of each network.
        steps: of a window of training.
        evaluations: for a batch of samples.
        matrix: side of the matrices whose product is the measure.
        names: of the contestants; all by default.
    """

    training: Mapping[str, int]
    sampling: Mapping[str, int]
    steps: int
    evaluations: int
    matrix: int
    names: Sequence[str] | None = None


PRESETS = ("dit S", "dit B", "dit L", "dit XL")
PLANS = {
    "cuda": Plan(
        {"unet 128": 128, "dit S": 256, "dit L": 128}, {"unet 128": 64, "dit S": 64, "dit L": 64}, 10, 50, 8192
    ),
    "cpu": Plan({"unet 32": 8, "unet 128": 4, "dit tiny": 16}, {"unet 32": 4, "dit tiny": 8}, 1, 4, 512, ("fmkit",)),
    "quick": Plan({"unet 32": 2, "dit tiny": 2}, {"unet 32": 2, "dit tiny": 2}, 1, 2, 64, ("fmkit",)),
}


def here(quick: bool) -> tuple[torch.device, Plan]:
    """The device, and what is measured on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, PLANS["quick" if quick else device.type]


def networks(peers: Mapping[str, Any], repeats: int, quick: bool) -> Iterator[Row]:
    """Weights (`setting`) and the operations of an evaluation of one image (`figure`), those of a GPU's plan too."""
    names = [*here(quick)[1].training] if quick else [*PLANS["cpu"].training, *PRESETS]
    for name in dict.fromkeys(names):
        for library, make in makers(name, peers).items():
            found = cost(make)
            yield Row(NETWORKS, library, name, PIXELS, None, float(found.parameters), (), found.forward)


def training(peers: Mapping[str, Any], repeats: int, quick: bool) -> Iterator[Row | Note]:
    """Seconds of a step, and the operations that it takes for an image (`figure`)."""
    device, plan = here(quick)
    yield matrix_rate(TRAINING, device, plan, repeats)
    for name, batch in plan.training.items():
        task = Task(name, batch, device, plan.steps, repeats)
        found: dict[str, Loop] = {who: partial(_trainer, chosen) for who, chosen in chosen_of(TRAINED, name, plan)}
        if name.startswith("unet") and TORCHCFM in peers:
            found[TORCHCFM] = partial(loops.torchcfm, peer=peers[TORCHCFM])
        steps = {who: cost(make).step for who, make in makers(name, peers).items()}
        for who, loop in found.items():
            yield from measured(TRAINING, who, task, loop, steps[who.partition(",")[0]])


def sampling(peers: Mapping[str, Any], repeats: int, quick: bool) -> Iterator[Row | Note]:
    """Seconds of a batch of samples, and the operations that one takes (`figure`), with so many evaluations."""
    device, plan = here(quick)
    yield matrix_rate(SAMPLING, device, plan, repeats)
    for name, batch in plan.sampling.items():
        task = Task(name, batch, device, plan.evaluations, repeats)
        found: dict[str, Loop] = {who: partial(_sampler, chosen) for who, chosen in chosen_of(SAMPLED, name, plan)}
        if name.startswith("unet") and TORCHCFM in peers:
            found[TORCHCFM] = partial(loops.torchcfms_sampler, peer=peers[TORCHCFM])
        each = {who: cost(make).forward * plan.evaluations for who, make in makers(name, peers).items()}
        for who, loop in found.items():
            for row in measured(SAMPLING, who, task, loop, each[who.partition(",")[0]]):
                yield row._replace(setting=float(plan.evaluations)) if isinstance(row, Row) else row


def makers(name: str, peers: Mapping[str, Any]) -> dict[str, Callable[[], torch.nn.Module]]:
    """Who builds the network of that name, and how."""
    found: dict[str, Callable[[], torch.nn.Module]] = {"fmkit": partial(network, name)}
    if name.startswith("unet") and TORCHCFM in peers:
        found[TORCHCFM] = partial(torchcfms, name, peers[TORCHCFM])
    return found


def chosen_of(all_of: Mapping[str, Any], name: str, plan: Plan) -> Iterator[tuple[str, Any]]:
    """The contestants that a network has.

    A transformer has no convolutions to lay out otherwise, and in float32 nobody trains a large one on a GPU: its
    products take fifteen times as long.
    """
    for who, chosen in all_of.items():
        options, settings = chosen
        sensible = name.startswith("unet") or ("precision" in settings and "channels_last" not in options)
        if who in plan.names if plan.names is not None else sensible:
            yield who, chosen


def matrix_rate(section: str, device: torch.device, plan: Plan, repeats: int) -> Row:
    """The product that the device's rate is measured by, and its operations (`figure`)."""
    # Many processors have no arithmetic in bfloat16: what they do in its place is no measure of anything.
    precision = "bfloat16" if device.type == "cuda" else "float32"
    seconds = loops.products(device, plan.matrix, repeats, precision)
    return Row(section, MATMUL, precision, plan.matrix, None, None, seconds, 2.0 * plan.matrix**3)


def measured(section: str, who: str, task: Task, loop: Loop, operations: float) -> Iterator[Row | Note]:
    """A row, or why there is none: memory that does not suffice, a compiler that gave up."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            seconds = loop(task)
        except torch.cuda.OutOfMemoryError:
            yield Note(section, f"{who} on {task.network} at batch {task.batch} does not fit into the device's memory.")
            return
        finally:
            gc.collect()
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
    without = [str(each.message) for each in told if "compiled" in str(each.message)]
    if without:
        yield Note(section, f"{who} on {task.network} is not measured: {without[0]}.")
    else:
        yield Row(section, who, task.network, PIXELS, task.batch, None, seconds, operations)


def _trainer(chosen: tuple[dict[str, Any], dict[str, Any]], task: Task) -> tuple[float, ...]:
    options, settings = chosen
    return loops.trainer(task, options, **settings)


def _sampler(chosen: tuple[dict[str, Any], dict[str, Any]], task: Task) -> tuple[float, ...]:
    options, settings = chosen
    return loops.sampler(task, options, **settings)


SECTIONS = (
    Section(
        NETWORKS,
        "The networks",
        """Of 32x32 images of three channels. The UNet is that of torchcfm's CIFAR-10 script, built by each library; the
        transformers are fmkit's presets with patches of 2x2. Operations are those of one evaluation of one image, a
        multiplication and an addition counted as two, by torch's FlopCounterMode.""",
        networks,
        lambda rows: [tables.networks(rows)],
    ),
    Section(
        TRAINING,
        "Training",
        """Flow matching without coupling. torchcfm's is the step of its script examples/images/cifar10/train_cifar10.py
        with the model icfm: Adam, a gradient clipped to 1, averaged weights in a loop over the tensors, in float32 (of
        which torch works out convolutions in TF32 on a GPU, for all of these). fmkit's is its trainer with the same
        numbers; its optimizer is always the fused AdamW, and its averaging one operation. Without a word it is in
        float32 and not compiled, as the script is.""",
        training,
        lambda rows: [tables.speeds(rows, "a step")],
    ),
    Section(
        SAMPLING,
        "Sampling",
        """Euler's method, by `Flow.sample`, as the network is, compiled, or recorded and replayed
        (`compile="graphs"`); in bfloat16 under torch.autocast. torchcfm's is its network in a loop that does nothing
        else.""",
        sampling,
        lambda rows: [tables.speeds(rows, "a batch")],
    ),
)
