"""What a run is worth: likelihood of held-out data, quality of samples beside the floor of finite samples, and NFE.

How its flow moves (energy and curvature of the ways) and what its coupling did (cost, marginals) explain the NFE.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, checked
from fmkit.data import Data, Split, dequantize
from fmkit.divergence import Divergence, HutchinsonDivergence
from fmkit.errors import ArgumentError, CombinationError, LikelihoodWarning
from fmkit.fields import network_of
from fmkit.flow import Flow
from fmkit.metrics import (
    CouplingDiagnostics,
    Frechet,
    SlicedWasserstein,
    Wasserstein,
    bits_per_dim,
    coupling_diagnostics,
    nll,
    normalized_path_energy,
    path_energy,
)
from fmkit.metrics.likelihood import standard_error
from fmkit.randomness import stream
from fmkit.shapes import check_data
from fmkit.training import Trainer

QUALITY_SAMPLES = 1000
COUPLED_BATCHES = 4
EXACT = 256  # numbers of a sample that is no image, up to which all likelihoods are taken, and exactly
SCORED = 2**16  # numbers of the samples that are scored otherwise, at once


@checked
def evaluate(
    flow: Flow,
    split: Split,
    seed: int = 0,
    samples: int = QUALITY_SAMPLES,
    dequantizations: int = 1,
    divergence: Divergence | None = None,
    scored: int | None = None,
) -> dict[str, Any]:
    """The figures of a flow on the held-out part of its data.

    Args:
        flow: in the units of the data.
        split: the data.
        seed: of the sampling, the dequantization and the projections.
        samples: how many to draw for the sample-quality figures.
        dequantizations: K of the bits per dimension.
        divergence: for the likelihood, instead of the flow's own, or of one probe where that takes too long.
        scored: at most so many held-out samples have their likelihood taken; see `likelihood`.

    Returns:
        `bits_per_dim` with its standard error for integer images, `nll` in nats otherwise (None, with the reason,
        where the flow has no density); `nfe` of sampling with the flow's own solver; `path_energy` and what belongs to
        it (see `ways`); distances between samples and held-out data, each beside its floor, the same distance from
        training data.

    Raises:
        ArgumentError: for what is no flow or split, or numbers out of range.
    """
    check_count("seed", seed, least=0)
    check_count("samples", samples, least=2)
    check_count("dequantizations", dequantizations)
    began = time.monotonic()
    figures: dict[str, Any] = likelihood(flow, split, seed, dequantizations, divergence, scored)
    figures["likelihood_seconds"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    cond = conditions(split, samples, seed)
    solution = flow.trajectory(samples, cond=cond, generator=stream(seed, "evaluate-nfe"))
    x = flow.in_data_units(solution.final)
    figures["nfe"] = solution.nfe.double().mean().item()
    figures["sampling_seconds"] = round(time.monotonic() - began, 2)
    figures["samples"] = samples
    return figures | ways(flow, split, seed, samples) | quality(x, split, seed)


@checked
def likelihood(
    flow: Flow,
    split: Split,
    seed: int,
    dequantizations: int = 1,
    divergence: Divergence | None = None,
    scored: int | None = None,
) -> dict[str, Any]:
    """`bits_per_dim` or `nll` of the held-out data, with the standard error of the mean over it (None of one image).

    Of images (C, H, W), and of other samples of more than 256 numbers, some are scored, by one probe each unless
    `divergence` is given: the exact one costs as many evaluations as an image has pixels. `scored` is how many of them
    at most.
    """
    check_count("seed", seed, least=0)
    name = "nll" if split.levels is None else "bits_per_dim"
    x, cond = split.test, split.test_cond
    if is_costly(split):
        divergence = divergence or HutchinsonDivergence()
        most = max(64, SCORED // math.prod(split.event_shape)) if scored is None else check_count("scored", scored)
        rows = torch.randperm(len(x), generator=stream(seed, "evaluate-rows"))[:most]
        x, cond = x[rows], None if cond is None else cond[rows]
    try:
        with _doubts():
            if split.levels is None:
                generator = stream(seed, "evaluate-likelihood", device=flow.device)
                value, error = nll(flow, x, cond, divergence=divergence, generator=generator)
                return {"nll": value, "nll_standard_error": error, "held_out": len(x)}
            generator = stream(seed, "evaluate-dequantize")
            bits = bits_per_dim(
                flow,
                x,
                cond,
                levels=split.levels,
                samples=dequantizations,
                divergence=divergence,
                generator=generator,
            )
    except (CombinationError, LikelihoodWarning) as error:
        return {name: None, "likelihood_refused": str(error)}
    return {
        "bits_per_dim": bits.mean().item(),
        "bits_per_dim_standard_error": standard_error(bits),
        "dequantizations": dequantizations,
        "held_out": len(bits),
    }


@contextlib.contextmanager
def _doubts() -> Iterator[None]:
    """Raise the warning of a likelihood that is off by more than a bit per dimension: it would say nothing.

    Such is that of a regression, which has one step, and of any sampler of few. All other warnings pass as they are.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    seen: dict[Any, Any] = {}  # so that the usual filter shows each of them once
    for each in caught:
        if isinstance(each.message, LikelihoodWarning) and not each.message.bits <= 1:
            raise each.message
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno, registry=seen)


def is_costly(split: Split) -> bool:
    """Whether figures of the data take minutes: images, for whose networks a sample is much work, and long vectors."""
    return math.prod(split.event_shape) > EXACT or len(split.event_shape) == 3


@checked
def quality(x: Tensor, split: Split, seed: int) -> dict[str, float]:
    """Distances of samples `(N, *event)` from the held-out data, and the floor: those of as many training samples."""
    check_data(x)
    real = split.test
    figures: dict[str, float] = {}
    train = _training_samples(split, len(x), seed)
    for metric in (SlicedWasserstein(), Frechet()):
        name = type(metric).__name__
        key = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        figures[key] = float(metric(x.cpu().double(), _continuous(real, split, seed), generator=stream(seed, key)))
        if train is not None:
            floor = metric(train.double(), _continuous(real, split, seed), generator=stream(seed, key))
            figures[f"{key}_floor"] = float(floor)
    return figures


@checked
def ways(flow: Flow, split: Split, seed: int, samples: int = QUALITY_SAMPLES) -> dict[str, Any]:
    """How the flow moves, in the units of the model, over `samples` of its trajectories, or as many as are held out.

    `path_energy`, `path_curvature`, `normalized_path_energy` and the squared distance `transport_squared`, W2² from
    their beginnings to held-out data, that it is relative to; None, with the reason, for a flow that has none. Between
    finite sets W2² is greater than between their laws, in many dimensions by much: compare runs at equal numbers.
    """
    check_count("seed", seed, least=0)
    n = min(check_count("samples", samples, least=2), len(split.test))
    cond = conditions(split, n, seed)
    generator = stream(seed, "evaluate-ways")
    x0 = flow.start.sample((n, *flow.event_shape), cond=cond, generator=generator, dtype=flow.dtype)
    try:
        moved = path_energy(flow, x0, cond)
    except CombinationError as error:
        return {"path_energy": None, "path_energy_refused": str(error)}
    x1 = _continuous(split.test[:n], split, seed)
    x1 = x1 if flow.transform is None else flow.transform(x1.to(flow.device))
    energy, least = moved.energy.mean().item(), Wasserstein()(x0, x1.cpu()) ** 2
    return {
        "path_energy": energy,
        "path_curvature": moved.curvature.mean().item(),
        "transport_squared": least,
        "transport_points": n,
        "normalized_path_energy": normalized_path_energy(energy, least),
    }


@checked
def pairing(trainer: Trainer, data: Data, seed: int) -> dict[str, Any]:
    """What the coupling of a run does to the first batches of its training: `coupling_diagnostics`, on average.

    Keys are `coupling_` and the figure's name; `coupling_cost` is None, with the reason, where it cannot be told.
    """
    check_count("seed", seed, least=0)
    if not trainer.path.euclidean:
        said = "this run lives on a manifold, where |x0 - x1|² is no cost"
        return {"coupling_cost": None, "coupling_refused": said}
    coupling, batches = trainer.unpaired(data)
    try:
        found = [
            coupling_diagnostics(coupling, *batch, generator=stream(seed, "evaluate-coupling", k))
            for k, batch in zip(range(COUPLED_BATCHES), batches, strict=False)
        ]
    except (ArgumentError, CombinationError) as error:
        return {"coupling_cost": None, "coupling_refused": str(error)}
    means: dict[str, Any] = {"coupling_batches": len(found), "coupling_batch_size": trainer.settings.batch_size}
    for name, values in zip(CouplingDiagnostics._fields, zip(*found, strict=True), strict=True):
        known = [v for v in values if v is not None]
        means[f"coupling_{name}"] = sum(known) / len(known) if known else None
    return means


@checked
def above_floor(flow: Flow, trainer: Trainer, data: Data, draws: int | None = None) -> dict[str, Any]:
    """The least possible loss on the training data, and how far above it the flow's network is.

    `loss_floor` and `loss_excess` with their standard errors, and `loss_floor_of` what; None, with the reason, where
    no floor is known.
    """
    try:
        floor = trainer.loss_floor(data)
    except CombinationError as error:
        return {"loss_floor": None, "loss_floor_refused": str(error)}
    excess = floor.excess(network_of(flow.field), **({} if draws is None else {"draws": draws}))
    return {
        "loss_floor": floor.value,
        "loss_floor_standard_error": floor.standard_error,
        "loss_floor_of": str(floor),
        "loss_excess": excess.value,
        "loss_excess_standard_error": excess.standard_error,
    }


@checked
def conditions(split: Split, n: int, seed: int) -> Tensor | None:
    """Conditions to sample with: those of held-out data, drawn with replacement."""
    if split.test_cond is None:
        return None
    return split.test_cond[
        torch.randint(len(split.test_cond), (check_count("n", n),), generator=stream(seed, "evaluate-conditions"))
    ]


def _continuous(x: Tensor, split: Split, seed: int) -> Tensor:
    """Data as the flow draws it: integer images are dequantized, and nothing else is done to what is compared with."""
    return (x if split.levels is None else dequantize(x.double(), stream(seed, "evaluate-augment"))).double()


def _training_samples(split: Split, n: int, seed: int) -> Tensor | None:
    x = split.train.x
    if not isinstance(x, Tensor):
        return None
    rows = torch.randperm(len(x), generator=stream(seed, "evaluate-floor"))[:n]
    return _continuous(x[rows], split, seed + 1)
