"""What super-resolved images are worth: beside the true ones, and beside bicubic interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, checked
from fmkit.data import Split
from fmkit.data.super_resolution import grey_levels_of
from fmkit.errors import ArgumentError
from fmkit.flow import Flow
from fmkit.metrics import bicubic, consistency, psnr, ssim
from fmkit.metrics.restoration import WINDOW
from fmkit.randomness import stream
from fmkit.solvers import Solver

IMAGES, BATCH = 200, 100


@checked
def evaluate_restoration(
    flow: Flow, split: Split, *, samples: int = IMAGES, seed: int = 0, solver: Solver | None = None
) -> dict[str, Any]:
    """Super-resolve held-out images, one sample each, and compare them with the true ones.

    Args:
        flow: of images, conditional on low resolutions.
        split: its data, as `SuperResolution` loads it.
        samples: how many held-out images, at most as many as there are.
        seed: of the sampling.
        solver: the flow's own by default.

    Returns:
        `psnr` in decibels, `ssim` (not of images below 11 pixels a side), and `consistency`, the root mean squared
        difference from what was given in grey levels; means over images, with `_standard_error`. Each with `_bicubic`
        the same of bicubic interpolation. `nfe`.

    Raises:
        ArgumentError: for data that are no images with low resolutions, or numbers out of range.
    """
    n = min(check_count("samples", samples, least=2), len(split.test))
    check_count("seed", seed, least=0)
    cond = split.test_cond
    if split.levels is None or not isinstance(cond, Tensor) or cond.ndim != 4 or split.test.ndim != 4:
        raise ArgumentError("the data are no images with low resolutions, as those of super-resolution")
    generator, top = stream(seed, "evaluate-restoration", device=flow.device), split.levels - 1
    made, evaluations = [], 0.0
    with torch.no_grad():
        for part in cond[:n].split(BATCH):
            solution = flow.trajectory(len(part), cond=part, solver=solver, generator=generator)
            made.append(flow.in_data_units(solution.final).cpu().floor().clamp(0, top).float())
            evaluations += solution.nfe.double().mean().item() * len(part)
    given, targets = grey_levels_of(cond[:n], split.levels), split.test[:n].float()
    factor = targets.shape[2] // given.shape[2]
    figures: dict[str, Any] = {"images": n, "factor": factor, "nfe": evaluations / n}
    for name, images in (("", torch.cat(made)), ("_bicubic", bicubic(given, factor).clamp(0, top))):
        found = {"psnr": psnr(images, targets, top), "consistency": consistency(images, given).sqrt()}
        if min(targets.shape[2:]) >= WINDOW:
            found["ssim"] = ssim(images, targets, top)
        for key, value in found.items():
            figures[key + name] = value.mean().item()
            figures[f"{key}{name}_standard_error"] = value.std().item() / math.sqrt(n)
    return figures
