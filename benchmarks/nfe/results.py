"""The measured rows, and what follows from them: who wins at a budget, and with what order errors fall.

The rule. At a budget of N evaluations a solver (with one time grid) does what it does with the most evaluations that
are no more than N. On every problem its error is divided by the least error that any has there; the one with the least
geometric mean of these ratios wins. Solvers that have no setting within N on some problem are left out.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TIES = 6  # digits to which two scores are compared: torchdiffeq's Euler and fmkit's differ by rounding
ASYMPTOTIC = (1e-10, 1e-2)  # errors between these are neither the reference's nor too great to follow a power law
FINEST = 3  # points of a fit, the last ones


class Row(NamedTuple):
    """One solver at one setting on one problem: steps and shift of the grid, or a tolerance."""

    kind: str
    path: str
    data: str
    solver: str
    steps: int | None = None
    shift: float | None = None
    tolerance: float | None = None
    samples: int = 0
    nfe: int = 0
    error: float = math.nan
    law_error: float = math.nan

    @property
    def problem(self) -> tuple[str, str]:
        return self.path, self.data

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.solver, self.shift)


class Candidate(NamedTuple):
    """A solver, and the shift of its time grid if it has one."""

    solver: str
    shift: float | None


class Score(NamedTuple):
    """What a candidate does at a budget, over problems.

    Attributes:
        ratio: geometric mean of error / least error.
        worst_ratio: the greatest of them.
        error: geometric mean of the errors.
        worst_error: the greatest of them.
        law_error: geometric mean of the law errors.
        rows: the rows behind these.
    """

    ratio: float
    worst_ratio: float
    error: float
    worst_error: float
    law_error: float
    rows: tuple[Row, ...]


def write(rows: Iterable[Row], file: Path) -> None:
    """The rows as CSV, numbers with four digits."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else "" if v is None else v for v in row])


def read(file: Path) -> list[Row]:
    """The rows of a CSV written by `write`."""
    with file.open(newline="") as lines:
        return [Row(**{key: _value(key, text) for key, text in line.items()}) for line in csv.DictReader(lines)]


def _value(key: str, text: str) -> Any:
    if key in ("kind", "path", "data", "solver"):
        return text
    return None if not text else int(text) if key in ("steps", "samples", "nfe") else float(text)


def within(rows: Iterable[Row], budget: int) -> dict[Candidate, dict[tuple[str, str], Row]]:
    """For each candidate, on each problem, its row with the most evaluations that are no more than the budget."""
    chosen: dict[Candidate, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.nfe):
        if row.nfe <= budget:
            chosen[row.candidate][row.problem] = row
    return dict(chosen)


def scores(rows: Sequence[Row], budget: int) -> dict[Candidate, Score]:
    """The scores of all candidates at a budget, the winner first; only the rows of one kind have a meaning together."""
    problems = {row.problem for row in rows}
    chosen = {c: there for c, there in within(rows, budget).items() if len(there) == len(problems)}
    least = {p: min(there[p].error for there in chosen.values()) for p in problems} if chosen else {}
    order = {c: i for i, c in enumerate(dict.fromkeys(row.candidate for row in rows))}
    found = {}
    for candidate, there in chosen.items():
        errors = [row.error for row in there.values()]
        ratios = [row.error / least[p] for p, row in there.items()]
        laws = geometric_mean(row.law_error for row in there.values())
        found[candidate] = Score(
            geometric_mean(ratios), max(ratios), geometric_mean(errors), max(errors), laws, tuple(there.values())
        )
    return dict(sorted(found.items(), key=lambda item: (round(math.log(item[1].ratio), TIES), order[item[0]])))


def winner(rows: Sequence[Row], budget: int) -> Candidate:
    """The first of the scores."""
    return next(iter(scores(rows, budget)))


def order_of(rows: Iterable[Row]) -> float | None:
    """The order p of error ~ steps^-p, by least squares over the finest settings in the asymptotic range.

    Args:
        rows: of one solver of fixed steps on one problem and one grid.

    Returns:
        None if fewer than three settings are in that range.
    """
    low, high = ASYMPTOTIC
    seen = sorted((row.steps, row.error) for row in rows if row.steps and low < row.error < high)[-FINEST:]
    if len(seen) < FINEST:
        return None
    steps, error = np.log(np.array(seen)).T
    return -float(np.polyfit(steps, error, 1)[0])


def orders(rows: Iterable[Row], solver: str) -> dict[tuple[str, str], float]:
    """The order seen on each problem where there is one to see, on the uniform grid."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.solver == solver and row.shift == 1.0:
            groups[row.problem].append(row)
    return {problem: p for problem, there in groups.items() if (p := order_of(there)) is not None}


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))
