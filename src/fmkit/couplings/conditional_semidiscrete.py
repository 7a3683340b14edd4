"""Semidiscrete optimal transport that leaves the source independent of the label.

Given a label, data is another law, and the noise that one samples with is still all of the source. So each label has
potentials of its own, fitted to its samples alone, and a fresh x0 is given a label before it is given a partner
(Mousavi-Hosseini et al., arXiv 2509.25519, on conditional generation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, check_instance
from fmkit.couplings.base import Coupling, check_conditions, resize
from fmkit.couplings.semidiscrete import Semidiscrete
from fmkit.errors import ArgumentError, CombinationError
from fmkit.shapes import check_batch
from fmkit.sources import Source


class ConditionalSemidiscrete(Coupling):
    """The optimal pairing of fresh source samples with all samples of a label, fitted before training.

    It is shown all of the data and the labels, integers; a row of several is one label. An x0 without a label of its
    own is given that of a row of the data, drawn at random: labels are as frequent as in the data, and given one, x0
    has the source's law. Every sample is met equally often, as far as `figures` tells.

    Args:
        steps: of the fit to each label, by stochastic gradients with averaging.

    Attributes:
        labels: `(L, k)` the labels that were fitted, in order.
        fits: L of `Semidiscrete`, one for each label.

    Examples:
        >>> import torch, fmkit
        >>> from fmkit.couplings import ConditionalSemidiscrete
        >>> x1, labels = torch.tensor([[-1.0], [5.0], [1.0], [7.0]]), torch.tensor([0, 1, 0, 1])
        >>> coupling = ConditionalSemidiscrete(steps=100)
        >>> for progress in coupling.prepare(fmkit.sources.Gaussian(), x1, labels, seed=0):
        ...     pass
        >>> x0 = torch.tensor([[-0.5], [0.5], [-0.5], [0.5]])  # each label's samples share the normal law by halves
        >>> coupling.pair(x0, x1, torch.tensor([0, 0, 1, 1]), labels)
        (tensor([0, 1, 2, 3]), tensor([0, 2, 1, 3]))
    """

    labels: Tensor

    def __init__(self, steps: int = 400) -> None:
        super().__init__()
        self.steps = check_count("steps", steps)
        self.register_buffer("labels", torch.zeros(0, 1, dtype=torch.int64))
        self.fits = torch.nn.ModuleList()
        self._shown: tuple[Tensor, Tensor, list[Tensor], list[Tensor]] | None = None

    @property
    def whole(self) -> bool:
        return True

    @property
    def figures(self) -> dict[str, float]:
        """The relative error of a typical sample's mass, over all labels."""
        fits = self._fits()
        if not fits:
            return {"marginal_error": float("nan")}
        size = torch.tensor([float(len(fit.potentials)) for fit in fits])
        error = torch.tensor([float(fit.marginal_error) for fit in fits])
        return {"marginal_error": float((size * error.square()).sum().div(size.sum()).sqrt())}

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        """Indices (i0, i1): i0 counts the rows of x0, i1 are their partners among the rows of x1, all of the data.

        Raises:
            CombinationError: if it was not fitted to this x1 with these labels.
            ArgumentError: if x0 is empty, not finite, or of other events than x1; if its labels are not the data's.
        """
        check_batch(x0, "x0")
        check_generator(generator)
        check_conditions("cond0", cond0, len(x0))
        if self._shown is None or self._shown[0] is not x1 or self._shown[1] is not cond1:
            self._shown = (x1, cond1, *self._split(x1, cond1))  # the data is looked at once
        rows, samples = self._shown[2:]
        wanted = self._drawn(len(x0), rows, generator) if cond0 is None else self._known(cond0, len(x0))
        i1 = torch.empty(len(x0), dtype=torch.int64, device=x0.device)
        for label in wanted.unique().tolist():
            at = torch.nonzero(wanted == label)[:, 0].to(x0.device)
            i1[at] = rows[label].to(x0.device)[self._fits()[label].pair(x0[at], samples[label])[1]]
        return torch.arange(len(x0), device=x0.device), i1

    def prepare(self, source: Source, x1: Tensor, cond: Any = None, *, seed: int = 0) -> Iterator[float]:
        """Fit each label's potentials; a fit to the same data that was cut off, or saved, goes on where it was.

        Raises:
            ArgumentError: if the data is empty or not finite, or has no labels.
        """
        check_instance("source", source, Source)
        check_batch(x1, "x1")
        check_count("seed", seed, least=0)
        return self._fit(source, x1.detach(), _labels("cond", cond, len(x1)), seed)

    def _fit(self, source: Source, x1: Tensor, cond: Tensor, seed: int) -> Iterator[float]:
        labels, of = cond.unique(dim=0, return_inverse=True)
        self._shown = None
        if not torch.equal(labels, self.labels.cpu()):
            self.labels = labels.to(self.labels.device)
            self._make(len(labels))
        for k, fit in enumerate(self._fits()):
            for progress in fit.prepare(source, x1[(of == k).to(x1.device)], seed=seed):
                yield (k + progress) / len(labels)

    def _split(self, x1: Tensor, cond1: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The rows and samples of each label."""
        check_batch(x1, "x1")
        cond = _labels("cond1", cond1, len(x1))
        labels, of = cond.unique(dim=0, return_inverse=True)
        if not torch.equal(labels, self.labels.cpu()):
            raise CombinationError(
                f"the potentials were fitted to {len(self.labels)} labels, and not to these {len(labels)}; pair wants "
                "the whole data set that prepare was given, and its labels"
            )
        rows = [torch.nonzero(of == k)[:, 0] for k in range(len(labels))]
        samples = [x1[at.to(x1.device)] for at in rows]
        for fit, some in zip(
            self._fits(), samples, strict=True
        ):  # a label that this batch lacks is held to account too
            fit.pair(some[:1], some)
        return rows, samples

    @staticmethod
    def _drawn(n: int, rows: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """`(n,)` the place among the labels of rows of the data drawn at random."""
        ends = torch.tensor([len(at) for at in rows]).cumsum(0)
        device = "cpu" if generator is None else generator.device
        row = torch.randint(int(ends[-1]), (n,), generator=generator, device=device)
        return torch.searchsorted(ends, row.cpu(), right=True)

    def _known(self, cond0: Any, n: int) -> Tensor:
        """`(n,)` the place of x0's labels among those of the data."""
        cond = _labels("cond0", cond0, n)
        if cond.shape[1] != self.labels.shape[1]:
            raise ArgumentError(f"cond0 has labels of {cond.shape[1]} numbers, the data of {self.labels.shape[1]}")
        same = (cond[:, None] == self.labels.cpu()).all(2)
        if not bool(same.any(1).all()):
            unknown = cond[~same.any(1)][0].tolist()
            raise ArgumentError(f"cond0 has the label {unknown}, which no sample of the data has")
        return same.int().argmax(1)

    def _fits(self) -> list[Semidiscrete]:
        return [fit for fit in self.fits if isinstance(fit, Semidiscrete)]

    def _make(self, n: int) -> None:
        self.fits = torch.nn.ModuleList(Semidiscrete(self.steps) for _ in range(n)).to(self.labels.device)

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        resize(self, ["labels"], state_dict, prefix)
        self._make(len(self.labels))
        self._shown = None
        super()._load_from_state_dict(state_dict, prefix, *others)


def _labels(name: str, cond: Any, n: int) -> Tensor:
    """Labels as `(n, k)` integers on the CPU."""
    if cond is None:
        raise ArgumentError(f"{name} is None; without labels, Semidiscrete is what this would be")
    if not isinstance(cond, Tensor) or cond.is_complex() or cond.is_floating_point():
        kind = str(cond.dtype) if isinstance(cond, Tensor) else type(cond).__name__
        raise ArgumentError(
            f"{name} is of {kind}, expected integer labels: each has a fit of its own; ConditionalOptimalTransport "
            "takes vectors"
        )
    if cond.ndim == 0:
        raise ArgumentError(f"{name} is one number, expected a label for each of {n} samples")
    check_conditions(name, cond, n)
    return cond.detach().cpu().long().reshape(n, -1)
