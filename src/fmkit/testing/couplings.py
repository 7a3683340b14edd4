"""The laws of a coupling: x0[i0[k]] meets x1[i1[k]], and both marginals stay what they were."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fmkit.couplings import Coupling
from fmkit.errors import ArgumentError
from fmkit.sources import Gaussian
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults, refusals

LAWS = Laws("coupling")
SHAPES = ((24, 2), (9, 1), (8, 2, 3), (1, 2))


@dataclass
class Trial:
    """A coupling, and copies of it prepared for batches of a shape."""

    coupling: Coupling

    @staticmethod
    @preserved()
    def of(coupling: Coupling) -> Trial:
        if not isinstance(coupling, Coupling):
            raise ArgumentError(f"got a {type(coupling).__name__}, expected a Coupling")
        return Trial(coupling)

    def batches(self, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
        x0, x1 = torch.randn(2, *shape, generator=seeded(seed))
        return x0, x1 + 0.5

    def prepared(self, shape: tuple[int, ...]) -> Coupling:
        coupling = copy.deepcopy(self.coupling)
        with preserved():  # its own law watches the generators
            list(coupling.prepare(Gaussian(), self.batches(shape)[1], seed=0))
        return coupling


def check_coupling(coupling: Coupling) -> Report:
    """Try every law of a coupling; one that is fitted first is fitted, on a copy.

    Raises:
        ArgumentError: if this is no coupling.

    Examples:
        >>> from fmkit.couplings import OptimalTransport
        >>> from fmkit.testing import check_coupling
        >>> check_coupling(OptimalTransport()).ok
        True
    """
    return LAWS.report(coupling, Trial.of(coupling))


@LAWS("indices", "pair returns int64 indices of rows it was shown, as many of either")
def _indices(trial: Trial) -> Measured:
    wrong = []
    for shape in SHAPES:
        x0, x1 = trial.batches(shape)
        for name, i in zip(("i0", "i1"), trial.prepared(shape).pair(x0, x1, generator=seeded(0)), strict=True):
            if not isinstance(i, Tensor) or i.dtype != torch.int64 or i.device != x1.device:
                wrong.append(f"{name} is {getattr(i, 'dtype', type(i).__name__)}, expected int64 on {x1.device}")
            elif i.shape != x1.shape[:1]:
                wrong.append(f"{name} has shape {tuple(i.shape)} for batches of shape {shape}")
            elif not bool(((i >= 0) & (i < len(x1))).all()):
                wrong.append(f"{name} reaches outside 0 .. {len(x1) - 1}")
    return faults(wrong)


@LAWS("marginals", "a coupling keeps its marginals: every row of x1 once, every row of x0 once on average")
def _marginals(trial: Trial) -> Measured:
    wrong = []
    for shape in SHAPES:
        coupling, (x0, x1), draws = trial.prepared(shape), trial.batches(shape), 64
        uses = []
        for seed in range(draws):
            i0, i1 = coupling.pair(x0, x1, generator=seeded(seed))
            for name, i in (("x1", i1),):
                count = torch.bincount(i, minlength=len(x1))
                if bool((count != 1).any()):
                    row = int((count - 1).abs().argmax())
                    wrong.append(f"row {row} of {name} is used {int(count[row])} times for batches of shape {shape}")
            uses.append(torch.bincount(i0, minlength=len(x0)).double())
            if wrong:
                return faults(wrong)
        mean, spread = torch.stack(uses).mean(0), torch.stack(uses).std(0) / draws**0.5
        far = (mean - 1).abs() - 5 * spread
        if bool((far > 1e-9).any()):
            row = int(far.argmax())
            wrong.append(
                f"row {row} of x0 is used {mean[row].item():.3g} times on average for batches of shape {shape}"
            )
    return faults(wrong)


@LAWS("conditions", "conditions are accepted, and samples and conditions are left as they were")
def _conditions(trial: Trial) -> Measured:
    x0, x1 = trial.batches((24, 2))
    labels, vectors = torch.arange(24) % 3, torch.randn(24, 4, generator=seeded(3))
    given = [x0, x1, labels, vectors]
    kept = [g.clone() for g in given]
    coupling = trial.prepared((24, 2))
    wrong = []
    for cond0, cond1 in ((None, labels), (labels, vectors)):
        i0, i1 = coupling.pair(x0, x1, cond0, cond1, generator=seeded(0))
        if not i0.shape == i1.shape == (24,) or sorted(i1.tolist()) != list(range(24)):
            wrong.append("with conditions the pairs do not hold every row of x1 once, so conditions are lost")
        for name, now, before in zip(("x0", "x1", "labels", "conditions"), given, kept, strict=True):
            if not torch.equal(now, before):
                wrong.append(f"{name} were changed in place")
    return faults(sorted(set(wrong)))


@LAWS("seeds", "the generator is the only randomness there is")
def _seeds(trial: Trial) -> Measured:
    x0, x1 = trial.batches((24, 2))
    coupling, before = trial.prepared((24, 2)), Globals()
    first = coupling.pair(x0, x1, generator=seeded(1))
    wrong = before.touched()
    stir(1)
    again = coupling.pair(x0, x1, generator=seeded(1))
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        wrong.append("two pairings from one seed differ")
    return faults(wrong)


@LAWS("prepare", "prepare tells its progress from 0 to 1, is seeded by its argument, and touches no global generator")
def _prepare(trial: Trial) -> Measured:
    (x0, x1), wrong, pairings = trial.batches((24, 2)), [], []
    for seed in range(2):
        coupling, before = copy.deepcopy(trial.coupling), Globals()
        progress = list(coupling.prepare(Gaussian(), x1, seed=0))
        wrong += before.touched()
        if any(not 0 <= p <= 1 for p in progress) or progress != sorted(progress):
            wrong.append("progress does not rise within [0, 1]")
        pairings.append(coupling.pair(x0, x1, generator=seeded(1)))
        stir(seed)
    if not all(torch.equal(a, b) for a, b in zip(*pairings, strict=True)):
        wrong.append("two preparations from one seed pair differently")
    return faults(sorted(set(wrong)))


@LAWS("independent", "a coupling that says it is independent does not look at the samples")
def _independent(trial: Trial) -> Measured:
    if not trial.coupling.independent:
        raise NotChecked("it does not say that it is independent")
    return faults([] if _blind(trial) else ["the pairs change with the values of x0 or x1"])


def _blind(trial: Trial) -> bool:
    coupling = trial.prepared((24, 2))
    pairings = [coupling.pair(*trial.batches((24, 2), seed), generator=seeded(1)) for seed in range(4)]
    return all(torch.equal(a, b) for p in pairings[1:] for a, b in zip(pairings[0], p, strict=True))


@LAWS("refuses", "empty, unequal and non-finite batches are refused (the last by couplings that look at values)")
def _refuses(trial: Trial) -> Measured:
    x0, x1 = trial.batches((24, 2))
    coupling, spoilt = trial.prepared((24, 2)), x0.clone()
    spoilt[3, 1] = torch.nan
    cases = {"empty batches": (x0[:0], x1[:0]), "x0 with a row less": (x0[:-1], x1)}
    if not _blind(trial):
        cases |= {
            "NaN in x0": (spoilt, x1),
            "NaN in x1": (x0, spoilt),
            "infinity in x0": (spoilt.nan_to_num(torch.inf), x1),
        }
    return refusals(
        (name, lambda c=case: coupling.pair(*c, generator=seeded(0)))  # type: ignore[misc]
        for name, case in cases.items()
    )
