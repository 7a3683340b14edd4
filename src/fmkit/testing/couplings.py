"""The laws of a coupling: x0[i0[k]] meets x1[i1[k]], and both marginals stay what they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmkit.couplings import Coupling
from fmkit.errors import ArgumentError, FmkitError
from fmkit.sources import Gaussian
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults, refusals

LAWS = Laws("coupling")
SHAPES = ((24, 2), (9, 1), (8, 2, 3), (1, 2), (131, 2))

Conditions = tuple[Tensor | None, Tensor | None]
Pairs = tuple[Tensor, Tensor]


def _labels(n: int) -> Tensor:
    return torch.arange(n) % 3


def _vectors(n: int) -> Tensor:
    return torch.randn(n, 4, generator=seeded(3))


# What may be known of either side: none, one, or both; classes, or vectors.
KNOWN: dict[str, Callable[[int], Conditions]] = {
    "no conditions": lambda n: (None, None),
    "labels of x1": lambda n: (None, _labels(n)),
    "labels of both": lambda n: (_labels(n).flip(0), _labels(n)),
    "vectors of x1": lambda n: (None, _vectors(n)),
    "labels of x0 and vectors of x1": lambda n: (_labels(n), _vectors(n)),
}


@dataclass
class Trial:
    """A coupling, copies of it prepared for batches of a shape, and the conditions it cannot do without."""

    coupling: Coupling
    known: str = "no conditions"

    @staticmethod
    @preserved()
    def of(coupling: Coupling) -> Trial:
        """Without conditions, or else with the first kind of conditions that it takes."""
        if not isinstance(coupling, Coupling):
            raise ArgumentError(f"got a {type(coupling).__name__}, expected a Coupling")
        for known in KNOWN:
            try:
                trial = Trial(coupling, known)
                trial.pair(trial.prepared(SHAPES[0]), *trial.batches(SHAPES[0]))
                return trial
            except FmkitError:
                continue
            except Exception:  # the laws will tell
                return trial
        return Trial(coupling)

    def batches(self, shape: tuple[int, ...], seed: int = 0) -> Pairs:
        x0, x1 = torch.randn(2, *shape, generator=seeded(seed))
        return x0, x1 + 0.5

    def pair(self, coupling: Coupling, x0: Tensor, x1: Tensor, seed: int = 0, known: str = "") -> Pairs:
        cond0, cond1 = KNOWN[known or self.known](len(x1))
        return coupling.pair(x0, x1, cond0, cond1, generator=seeded(seed))

    def prepared(self, shape: tuple[int, ...]) -> Coupling:
        coupling = copy.deepcopy(self.coupling)
        with preserved():  # its own law watches the generators
            list(coupling.prepare(Gaussian(), self.batches(shape)[1], KNOWN[self.known](shape[0])[1], seed=0))
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
        found = trial.pair(trial.prepared(shape), x0, x1)
        if not isinstance(found, tuple) or len(found) != 2:
            what = f"{len(found)} things" if isinstance(found, tuple | list) else f"a {type(found).__name__}"
            return faults([f"pair returned {what}, expected (i0, i1)"])
        for name, i in zip(("i0", "i1"), found, strict=True):
            if not isinstance(i, Tensor) or i.dtype != torch.int64 or i.device != x1.device:
                wrong.append(f"{name} is {getattr(i, 'dtype', type(i).__name__)}, expected int64 on {x1.device}")
            elif i.shape != x1.shape[:1]:
                wrong.append(f"{name} has shape {tuple(i.shape)} for batches of shape {shape}")
            elif not bool(((i >= 0) & (i < len(x1))).all()):
                wrong.append(f"{name} reaches outside 0 .. {len(x1) - 1}")
    return faults(wrong)


@LAWS(
    "marginals",
    "a coupling keeps its marginals: every row of x1 once, every row of x0 once on average (with all of the data the "
    "other way round)",
    ["indices"],
)
def _marginals(trial: Trial) -> Measured:
    for shape in SHAPES:
        coupling, (x0, x1) = trial.prepared(shape), trial.batches(shape)
        draws = 64 if shape[0] < 100 else 4
        shown = f"for batches of shape {shape}"
        if coupling.whole:
            fresh = [trial.pair(coupling, trial.batches(shape, seed)[0], x1, seed) for seed in range(draws)]
            if wrong := _of_all(fresh, shown):
                return faults([wrong])
            continue
        fixed = [trial.pair(coupling, x0, x1, seed) for seed in range(draws)]
        fresh = [trial.pair(coupling, *trial.batches(shape, seed), seed) for seed in range(1, draws)]
        tied = [trial.pair(coupling, x0[_labels(len(x0))], x1[_labels(len(x1))], seed) for seed in range(2)]
        wrong = (
            (_on_average(fixed, shown) if draws > 32 else "")
            or _each(fixed + fresh, shown)
            or _each(tied, f"{shown} with equal rows")
        )
        if wrong:
            return faults([wrong])
    return faults([])


def _of_all(draws: list[Pairs], shown: str) -> str:
    """What is wrong with pairs of fresh x0 and all of the data: each x0 has one partner, each x1 one on average."""
    for i0, i1 in draws:
        if not torch.equal(i0.sort().values, torch.arange(len(i0))):
            row, times = _worst(torch.bincount(i0, minlength=len(i1)).double())
            return f"row {row} of x0 is used {times:.0f} times {shown}"
    return _on_average([(i1, i0) for i0, i1 in draws], shown, "x1") if len(draws) > 32 else ""


def _each(draws: list[Pairs], shown: str) -> str:
    """What is wrong with single draws: a row of x1 not used once; or of x0, where other draws use each once."""
    n = len(draws[0][1])
    every = torch.arange(n)
    for _, i1 in draws:
        if not torch.equal(i1.sort().values, every):
            row, times = _worst(torch.bincount(i1, minlength=n).double())
            return f"row {row} of x1 is used {times:.0f} times {shown}" + (
                "" if len(i1) == n else f", of {n} pairs {len(i1)}"
            )
    once = [torch.equal(i0.sort().values, every) for i0, _ in draws]
    if n > 7 and sum(once) > len(once) / 2 and not all(once):  # no draws with replacement do that by chance
        row, times = _worst(torch.bincount(draws[once.index(False)][0], minlength=n).double())
        return f"row {row} of x0 is used {times:.0f} times in {len(once) - sum(once)} of {len(once)} draws {shown}"
    return ""


def _on_average(draws: list[Pairs], shown: str, side: str = "x0") -> str:
    """What is wrong with the draws together: a row of x0 that is used more or less often than once."""
    uses = torch.stack([torch.bincount(i0, minlength=len(i1)).double() for i0, i1 in draws if len(i0) == len(i1)])
    far = (uses.mean(0) - 1).abs() - 5 * uses.std(0) / len(draws) ** 0.5
    if not bool((far > 1e-9).any()):
        return ""
    row = int(far.argmax())
    return f"row {row} of {side} is used {uses.mean(0)[row].item():.3g} times on average {shown}"


def _worst(uses: Tensor) -> tuple[int, float]:
    row = int((uses - 1).abs().argmax())
    return row, uses[row].item()


@LAWS("conditions", "conditions are accepted, and samples and conditions are left as they were", ["indices"])
def _conditions(trial: Trial) -> Measured:
    n = 24
    x0, x1 = trial.batches((n, 2))
    coupling, wrong, refused = trial.prepared((n, 2)), [], []
    for known, conditions in list(KNOWN.items())[1:]:
        given = {"x0": x0.clone(), "x1": x1.clone()}
        given |= {f"cond{i}": c for i, c in enumerate(conditions(n)) if c is not None}
        kept, cond = {name: value.clone() for name, value in given.items()}, [given.get(f"cond{i}") for i in (0, 1)]
        try:
            draws = [coupling.pair(given["x0"], given["x1"], *cond, generator=seeded(0))]
            wrong += [f"{name} was changed in place" for name in given if not torch.equal(given[name], kept[name])]
            for seed in range(1, 40):
                x0 = trial.batches((n, 2), seed)[0] if coupling.whole else given["x0"]
                draws.append(coupling.pair(x0, given["x1"], *cond, generator=seeded(seed)))
        except FmkitError as error:  # it may want conditions of another kind
            refused.append(f"{known} are refused: {error}")
            continue
        if any(len(pair) != 2 or any(i.shape != (n,) for i in pair) for pair in draws):
            wrong.append(f"with {known} the pairs are not {n} indices of either")
        elif coupling.whole:
            wrong += filter(None, [_of_all(draws, f"with {known}")])
        elif said := _each(draws, f"with {known}") or _on_average(draws, f"with {known}"):
            wrong.append(said)
    return faults(refused if len(refused) == len(KNOWN) - 1 else sorted(set(wrong)))


@LAWS("seeds", "the generator is the only randomness there is", ["indices"])
def _seeds(trial: Trial) -> Measured:
    x0, x1 = trial.batches((24, 2))
    coupling, before = trial.prepared((24, 2)), Globals()
    first = trial.pair(coupling, x0, x1, 1)
    wrong = before.touched()
    stir(1)
    again = trial.pair(coupling, x0, x1, 1)
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        wrong.append("two pairings from one seed differ")
    return faults(wrong)


@LAWS(
    "prepare",
    "prepare tells its progress from 0 to 1, is seeded by its argument, and touches no global generator",
    ["seeds"],
)
def _prepare(trial: Trial) -> Measured:
    (x0, x1), wrong, pairings = trial.batches((24, 2)), [], []
    for seed in range(2):
        coupling, before = copy.deepcopy(trial.coupling), Globals()
        progress = list(coupling.prepare(Gaussian(), x1, KNOWN[trial.known](len(x1))[1], seed=0))
        wrong += before.touched()
        if any(not 0 <= p <= 1 for p in progress) or progress != sorted(progress):
            wrong.append("progress does not rise within [0, 1]")
        if not torch.equal(x1, trial.batches((24, 2))[1]):
            return faults(["x1 was changed in place"])
        pairings.append(trial.pair(coupling, x0, x1, 1))
        stir(seed)
    if not all(torch.equal(a, b) for a, b in zip(*pairings, strict=True)):
        wrong.append("two preparations from one seed pair differently")
    return faults(sorted(set(wrong)))


@LAWS("independent", "a coupling that says it is independent does not look at the samples", ["seeds"])
def _independent(trial: Trial) -> Measured:
    if not trial.coupling.independent:
        raise NotChecked("it does not say that it is independent")
    return faults([] if _blind(trial) else ["the pairs change with the values of x0 or x1"])


def _blind(trial: Trial) -> bool:
    coupling = trial.prepared((24, 2))
    batches = [trial.batches((24, 2), seed) for seed in range(4)]
    shown = [(x0, batches[0][1]) for x0, _ in batches] if coupling.whole else batches
    pairings = [trial.pair(coupling, *batch, 1) for batch in shown]
    return all(torch.equal(a, b) for p in pairings[1:] for a, b in zip(pairings[0], p, strict=True))


@LAWS(
    "refuses",
    "empty, unequal and non-finite batches are refused (the last by couplings that look at values)",
    ["indices"],
)
def _refuses(trial: Trial) -> Measured:
    x0, x1 = trial.batches((24, 2))
    coupling, spoilt = trial.prepared((24, 2)), x0.clone()
    spoilt[3, 1] = torch.nan
    cases = {"empty batches": (x0[:0], x1 if coupling.whole else x1[:0])}
    if not coupling.whole:
        cases["x0 with a row less"] = (x0[:-1], x1)
    if not _blind(trial):
        cases |= {
            "NaN in x0": (spoilt, x1),
            "NaN in x1": (x0, spoilt),
            "infinity in x0": (spoilt.nan_to_num(torch.inf), x1),
        }
    return refusals(
        (name, lambda c=case: trial.pair(coupling, *c))  # type: ignore[misc]
        for name, case in cases.items()
    )
