"""What is measured of a trained flow of images: likelihood, distances, evaluations and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmkit.benches.paper_protocol import BUDGETS, DURING, REFERENCE_NFE, TOLERANCE, Protocol
from fmkit.divergence import HutchinsonDivergence
from fmkit.randomness import stream
from fmkit.shapes import batch_time
from fmkit.solvers import ABM3, RK4, Dopri5, Euler, Midpoint, Solver

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.flow import Flow
    from fmkit.metrics import FeatureExtractor, ImageSet

# As many steps as fit into so many evaluations.
FEW_STEPS: dict[str, Callable[[int], Solver]] = {
    "euler": lambda nfe: Euler(nfe),
    "midpoint": lambda nfe: Midpoint(max(1, nfe // 2)),
    "rk4": lambda nfe: RK4(max(1, nfe // 4)),
    "abm3": lambda nfe: ABM3(nfe),
}
BATCH, SHOWN, MOMENTS, WAY_STEPS = 250, 8, 7, 30
ADAPTIVE = 150  # evaluations of dopri5, for an estimate


def evaluations(protocol: Protocol) -> float:
    """How many times the network is asked about one image in all that is measured of a cell, roughly.

    A gradient, for a divergence, counts as two evaluations more. dopri5 takes 100 to 300 at this tolerance.
    """
    sampled = protocol.samples * (len(DURING) * ADAPTIVE + len(FEW_STEPS) * sum(BUDGETS))
    scored = protocol.nll_images * protocol.dequantizations * 3 * ADAPTIVE
    return sampled + scored + protocol.noises * REFERENCE_NFE


class Judge:
    """Tells generated images from real ones by the features of a classifier of the same data, or by others.

    Args:
        split: labelled images.
        cache: where the classifier and what is remembered of the training images are kept.
        classifier_steps: of the classifier's training.
        features: instead of the classifier's.
        device: of the classifier.
    """

    def __init__(
        self,
        split: Split,
        cache: Any = None,
        classifier_steps: int | None = None,
        features: FeatureExtractor | None = None,
        device: str = "cpu",
    ) -> None:
        from fmkit.metrics import reference_set
        from fmkit.metrics.features import ClassifierSettings, classifier

        settings = ClassifierSettings() if classifier_steps is None else ClassifierSettings(steps=classifier_steps)
        self.accuracy: float | None = None
        self.network: Any = features
        if features is None:
            self.network = judge = classifier(split, settings, cache=cache, device=device)
            self.accuracy = judge.accuracy
        self.reference: ImageSet = reference_set(split.train.x.float(), self.network, cache=cache)

    def fid(self, images: Tensor) -> float:
        """The Fréchet distance of images, in the data's units, from the training images."""
        from fmkit.metrics import ImageSet
        from fmkit.metrics.moments import moments_distance

        seen = ImageSet(self.network, kept=2).extend(images.float().split(BATCH))
        return moments_distance(seen.moments, self.reference.moments)

    def held_out(self, split: Split, samples: int) -> dict[str, Any]:
        """What a perfect flow might have: the distance of held-out images."""
        images = split.test[:samples]
        return {"fid": self.fid(images), "images": len(images), "accuracy": self.accuracy}


def noise(flow: Flow, n: int, seed: int) -> Tensor:
    """`(n, *event)` beginnings, the same for every method; of another n they are others, so take rows of one draw.

    They are drawn on the processor, so that they are the same on every device.
    """
    shape, generator = (n, *flow.event_shape), stream(seed, "paper-noise")
    return flow.start.sample(shape, generator=generator, dtype=flow.dtype, device="cpu").to(flow.device)


@torch.no_grad()
def generated(flow: Flow, solver: Solver, x0: Tensor) -> tuple[Tensor, float]:
    """`(n, *event)` ends in the model's units of beginnings like them, and the mean NFE."""

    def velocity(t: Any, x: Tensor) -> Tensor:
        return flow.field.velocity(batch_time(t, x), x, None)

    solutions = [solver.solve(velocity, part, flow.interval) for part in x0.split(BATCH)]
    nfe = torch.cat([solution.nfe for solution in solutions]).double().mean().item()
    return torch.cat([solution.final for solution in solutions]), nfe


def adaptive(flow: Flow, judge: Judge, protocol: Protocol, seed: int) -> dict[str, float]:
    """FID and NFE of dopri5 at 1e-5."""
    ends, nfe = generated(flow, Dopri5(TOLERANCE, TOLERANCE), noise(flow, protocol.samples, seed))
    return {"fid": judge.fid(flow.in_data_units(ends)), "nfe": nfe}


def few_steps(flow: Flow, judge: Judge, protocol: Protocol, seed: int) -> list[dict[str, Any]]:
    """FID, and RMSE against a solution of 1,000 evaluations from the same noise, of each solver at each budget.

    The error is that of a pixel in the model's units.
    """
    x0 = noise(flow, protocol.samples, seed)
    exact, _ = generated(flow, RK4(REFERENCE_NFE // 4), x0[: protocol.noises])
    rows = []
    for name, make in FEW_STEPS.items():
        for budget in BUDGETS:
            ends, nfe = generated(flow, make(budget), x0)
            error = (ends[: protocol.noises] - exact).double().square().mean().sqrt().item()
            rows.append({"solver": name, "nfe": nfe, "fid": judge.fid(flow.in_data_units(ends)), "rmse": error})
    return rows


def likelihood(flow: Flow, split: Split, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Bits per dimension of held-out images, the standard error of their mean (None of one image), and of how many."""
    from fmkit.metrics import bits_per_dim
    from fmkit.metrics.likelihood import standard_error

    images = split.test[: protocol.nll_images]
    assert split.levels is not None  # `labelled_images` looked
    bits = bits_per_dim(
        flow,
        images,
        levels=split.levels,
        samples=protocol.dequantizations,
        solver=Dopri5(TOLERANCE, TOLERANCE),
        divergence=HutchinsonDivergence(1),
        batch_size=BATCH,
        generator=stream(seed, "paper-nll"),
    )
    return {"bits": bits.mean().item(), "bits_error": standard_error(bits), "bits_images": len(images)}


def strips(flow: Flow, seed: int) -> dict[str, Tensor]:
    """Pictures' contents, in the data's units: `by_nfe` `(budgets + 1, 8, *event)` and `path` `(moments, 8, *event)`.

    By NFE: midpoint at each budget and the reference last, from the same noises. Path: the states of an RK4
    solution at equal steps of time, through the transform's inverse as if they were data.
    """
    solvers = [*(FEW_STEPS["midpoint"](nfe) for nfe in BUDGETS), RK4(REFERENCE_NFE // 4)]
    x0 = noise(flow, SHOWN, seed)
    ends = [flow.in_data_units(generated(flow, solver, x0)[0]) for solver in solvers]
    begin, end = flow.interval
    times = [begin + (end - begin) * k / (MOMENTS - 1) for k in range(MOMENTS)]
    way = flow.trajectory(SHOWN, times, solver=RK4(WAY_STEPS), generator=stream(seed, "paper-noise"))
    return {"by_nfe": torch.stack(ends), "path": torch.stack([flow.in_data_units(x) for x in way.states])}
