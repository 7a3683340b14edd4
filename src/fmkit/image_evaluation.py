"""What images that a flow draws are worth: distances from real ones in a classifier's features or Inception's, and
whether the classifier recognises them.

Samples are made and looked at batch by batch, and never held at once.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit import registry
from fmkit.arguments import check_count, checked, shown
from fmkit.data import DataSet, Split
from fmkit.errors import ArgumentError
from fmkit.evaluation import conditions
from fmkit.flow import Flow
from fmkit.metrics import Classifier, FeatureExtractor, ImageSet, classifier, image_distances, reference_set
from fmkit.randomness import stream
from fmkit.solvers import Solver
from fmkit.specs import Context, build

IMAGES, BATCH = 1000, 250


@checked
def evaluate_images(
    flow: Flow,
    split: Split,
    labelled: Split | None = None,
    *,
    samples: int = IMAGES,
    seed: int = 0,
    solver: Solver | None = None,
    judge: Classifier | None = None,
    features: Any = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Distances of samples from the training images, each beside that of held-out images, and how many are recognised.

    Args:
        flow: in the units of the data.
        split: its data.
        labelled: the same images as `(C, H, W)`, with the labels of which the classifier is made; `split` by default.
            Of features that are given, and samples without labels, it needs none.
        samples: how many to draw.
        seed: of the sampling, and of the conditions.
        solver: the flow's own by default.
        judge: the classifier; by default the one that `classifier` trains on `labelled`.
        features: a `FeatureExtractor` as `Inception`, or any function `(B, C, H, W) -> (B, F)` of images in the
            data's units with an attribute `identity`, instead of the classifier's; see `ImageSet`.
        cache: folder in which the classifier and what is remembered of real images are kept.

    Returns:
        `fid`, `kid`, `precision`, `recall`, `inception_score` where the features know classes; each with `_held_out`
        the same of held-out images, as many as there are; `recognised`, the share of samples of a label that the
        classifier takes for that label, where the flow is conditional; the classifier's `accuracy` on held-out images,
        where there is one; `nfe` and `sampling_seconds`.

    Raises:
        ArgumentError: for what are no images, or numbers out of range.
    """
    check_count("samples", samples, least=4)
    check_count("seed", seed, least=0)
    labelled = split if labelled is None else labelled
    shape = labelled.event_shape
    if len(shape) != 3 or math.prod(shape) != math.prod(flow.event_shape):
        raise ArgumentError(
            f"samples have shape {flow.event_shape} and images {shape}, expected (C, H, W) of that size"
        )
    if not isinstance(labelled.train.x, Tensor):
        raise ArgumentError("the training images are not in memory, where the features of all of them are taken")
    labels, knows = split.classes is not None and split.test_cond is not None, judge
    if knows is None and (labels or features is None):
        knows = classifier(labelled, cache=cache, device=flow.device)
    seen_by: Any = knows if features is None else features
    reference = reference_set(labelled.train.x.float(), seen_by, cache=cache)
    drawn, evaluations, right = ImageSet(reference.features), 0.0, 0
    began = time.monotonic()
    for x, cond, nfe in _samples(flow, split, samples, seed, solver):
        images = x.reshape(-1, *shape).float().floor()
        if labelled.levels is not None:  # as saved pictures
            images = images.clamp(0, labelled.levels - 1)
        drawn.add(images)
        evaluations += nfe
        if labels and knows is not None:
            right += int((knows.predict(images).cpu() == cond.cpu()).sum())
    figures: dict[str, Any] = {"images": samples, **image_distances(drawn, reference)}
    held_out = ImageSet(reference.features).extend(labelled.test[:samples].float().split(BATCH))
    for name, value in image_distances(held_out, reference).items():
        figures[f"{name}_held_out"] = value
    figures["images_held_out"] = held_out.count
    if knows is not None:
        figures["accuracy"] = knows.accuracy
    if labels:
        figures["recognised"] = right / samples
    return figures | {"nfe": evaluations / samples, "sampling_seconds": round(time.monotonic() - began, 2)}


def labelled_images(data: str | Mapping[str, Any], seed: int = 0, *, labels: bool = True) -> Split:
    """The images of a data set as `(C, H, W)`, with the labels that a classifier needs.

    Args:
        data: its name, or its description as a configuration writes it: of what is made of images, as super-resolution,
            those inside it.
        seed: of the split.
        labels: False takes images without, too.

    Raises:
        RegistryError: if none of that name is installed.
        ArgumentError: if it is no set of such images, or its files or package are missing.
    """
    if not isinstance(data, str) and not (isinstance(data, Mapping) and isinstance(data.get("name"), str)):
        raise ArgumentError(f"data is {shown(data)}, expected a name or {{name: ..., ...}}")
    spec = {"name": data} if isinstance(data, str) else dict(data)
    while isinstance(spec.get("data"), str | Mapping):
        spec = {"name": spec["data"]} if isinstance(spec["data"], str) else dict(spec["data"])
    known = inspect.signature(registry.load("fmkit.datasets", spec["name"])).parameters
    wanted = {"flat": False} | ({"labels": True} if labels else {})
    split = build(DataSet, spec | {k: v for k, v in wanted.items() if k in known}, "data").load(seed)
    if len(split.event_shape) != 3 or split.levels is None or (labels and split.classes is None):
        raise ArgumentError(
            f"data is {spec['name']!r}, with events of shape {split.event_shape}; expected "
            f"{'labelled ' if labels else ''}images (C, H, W) of whole grey levels, such as digits or fashion-mnist"
        )
    return split


def feature_extractor(features: Any, split: Split, where: str = "features") -> FeatureExtractor:
    """The feature extractor of that description, for images of that split; messages say that it stands at `where`.

    Raises:
        ConfigError: if there is none, or it cannot be had.
    """
    return build(FeatureExtractor, features, where, Context(supplied={"levels": split.levels}))


@torch.no_grad()
def _samples(
    flow: Flow, split: Split, samples: int, seed: int, solver: Solver | None
) -> Iterator[tuple[Tensor, Any, float]]:
    """Batches in the data's units, their conditions, and their NFE together."""
    cond, generator = conditions(split, samples, seed), stream(seed, "evaluate-images", device=flow.device)
    for begin in range(0, samples, BATCH):
        n = min(BATCH, samples - begin)
        part = None if cond is None else cond[begin : begin + n]
        solution = flow.trajectory(n, cond=part, solver=solver, generator=generator)
        yield flow.in_data_units(solution.final), part, solution.nfe.double().mean().item() * n
