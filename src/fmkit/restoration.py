"""What restored images are worth: beside the true ones, and beside what was given, or its bicubic interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import check_count, checked
from fmkit.data import Split
from fmkit.errors import ArgumentError
from fmkit.flow import Flow
from fmkit.metrics import Classifier, ImageSet, bicubic, classifier, image_distances, psnr, reference_set, ssim
from fmkit.metrics.restoration import WINDOW
from fmkit.randomness import stream
from fmkit.solvers import Solver

IMAGES, BATCH = 200, 100


class Restored(NamedTuple):
    """Held-out images, restored; `(N, C, H, W)` in whole grey levels, but for what was given.

    Attributes:
        given: what was given, at the size of the images: as it is, or enlarged by bicubic interpolation.
        images: what the flow made of it.
        targets: the true ones.
        nfe: evaluations of each, on average.
    """

    given: Tensor
    images: Tensor
    targets: Tensor
    nfe: float


@checked
def restore(
    flow: Flow, split: Split, *, samples: int = IMAGES, seed: int = 0, solver: Solver | None = None
) -> Restored:
    """Restore the first held-out images, one sample each; arguments and errors as of `evaluate_restoration`."""
    n = min(check_count("samples", samples, least=2), len(split.test))
    check_count("seed", seed, least=0)
    cond, degrade, top = _parts(split)
    generator = stream(seed, "evaluate-restoration", device=flow.device)
    made, evaluations = [], 0.0
    with torch.no_grad():
        for part in cond[:n].split(BATCH):
            solution = flow.trajectory(len(part), cond=part, solver=solver, generator=generator)
            made.append(flow.in_data_units(solution.final).cpu().floor().clamp(0, top).float())
            evaluations += solution.nfe.double().mean().item() * len(part)
    targets = split.test[:n].float()
    low = degrade(targets)
    factor = targets.shape[2] // low.shape[2]
    given = low if factor == 1 else bicubic(low, factor).clamp(0, top)
    return Restored(given, torch.cat(made), targets, evaluations / n)


@checked
def evaluate_restoration(
    flow: Flow,
    split: Split,
    labelled: Split | None = None,
    *,
    samples: int = IMAGES,
    seed: int = 0,
    solver: Solver | None = None,
    judge: Classifier | None = None,
) -> dict[str, Any]:
    """Restore held-out images, one sample each, and compare them with the true ones.

    Args:
        flow: of images, conditional on what is left of them.
        split: its data, as `SuperResolution` or `Degraded` loads it.
        labelled: the same images with labels, of which the classifier is made whose features FID is taken in; without
            there is no FID.
        samples: how many held-out images, at most as many as there are.
        seed: of the sampling.
        solver: the flow's own by default.
        judge: the classifier; by default the one that `classifier` trains on `labelled`.

    Returns:
        `psnr` in decibels, `ssim` (not of images below 11 pixels a side), and `consistency`, the root mean squared
        difference from what was given, of the result degraded again, in grey levels; means over images, with
        `_standard_error`. With `labelled`, `fid`, the distance of the set from the training images, and the same
        `_held_out` of the true ones. Each with `_bicubic` the same of bicubic interpolation, or, where what was given
        has the size of the images, with `_given` the same of that as it is. `nfe`.

    Raises:
        ArgumentError: for data that are no images with what is left of them, or numbers out of range.
    """
    restored = restore(flow, split, samples=samples, seed=seed, solver=solver)
    _, degrade, top = _parts(split)
    targets, low, n = restored.targets, degrade(restored.targets), len(restored.targets)
    factor = targets.shape[2] // low.shape[2]
    figures: dict[str, Any] = {"images": n, "factor": factor, "nfe": restored.nfe}
    sets = {"": restored.images, "_given" if factor == 1 else "_bicubic": restored.given}
    for name, images in sets.items():
        off = (degrade(images) - low).double().square().flatten(1).mean(1).sqrt()
        found = {"psnr": psnr(images, targets, top), "consistency": off}
        if min(targets.shape[2:]) >= WINDOW:
            found["ssim"] = ssim(images, targets, top)
        for key, value in found.items():
            figures[key + name] = value.mean().item()
            figures[f"{key}{name}_standard_error"] = value.std().item() / math.sqrt(n)
    if labelled is not None:
        knows = classifier(labelled, device=flow.device) if judge is None else judge
        reference = reference_set(labelled.train.x, knows)
        for name, images in {**sets, "_held_out": targets}.items():
            seen = ImageSet(reference.features).extend(images.split(BATCH))
            figures[f"fid{name}"] = image_distances(seen, reference)["fid"]
    return figures


def _parts(split: Split) -> tuple[Tensor, Callable[[Tensor], Tensor], int]:
    """Conditions of held-out images, what makes them, and the highest grey level; an ArgumentError for other data."""
    cond, degrade = split.test_cond, split.degrade
    if split.levels is None or degrade is None or not isinstance(cond, Tensor) or split.test.ndim != 4:
        raise ArgumentError("the data are no images with what is left of them, as super-resolution's or degraded's")
    return cond, degrade, split.levels - 1
