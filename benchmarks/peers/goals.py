"""What fmkit aims at beside its peers, and whether the rows reach it.

A goal looks at every piece of work that it is about; it is met if the median ratio of each is at least what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.peers.results import Row, Spread, ratios
from benchmarks.peers.sampling import COMPILED, at_equal_error

Measured = Callable[[Sequence[Row]], list[tuple[str, Spread]]]


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached.

    Attributes:
        section: of the benchmark.
        text: what is to be so many times faster than what.
        least: the ratio asked for.
        measured: from all rows, the ratio on every piece of work, with its name.
    """

    section: str
    text: str
    least: float
    measured: Measured

    def verdict(self, rows: Sequence[Row]) -> Verdict | None:
        """What came out; None if nothing was measured."""
        found = self.measured(rows)
        if not found:
            return None
        worst, at = min(found, key=lambda pair: pair[1].median)[::-1]
        missed = [name for name, ratio in found if not ratio.median >= self.least]
        return Verdict(worst, at, missed, len(found))


class Verdict(NamedTuple):
    """How a goal came out.

    Attributes:
        worst: the least ratio.
        at: the piece of work it was measured on.
        missed: the pieces of work below what is asked.
        measured: how many there are.
    """

    worst: Spread
    at: str
    missed: list[str]
    measured: int


def between(section: str, ours: str, other: str, keep: Callable[[Row], bool] = lambda row: True) -> Measured:
    """The ratios of two contestants of a section, on the work that `keep` lets through."""

    def measured(rows: Sequence[Row]) -> list[tuple[str, Spread]]:
        here = [row for row in rows if row.section == section and keep(row)]
        return [(name(row), ratio) for row, ratio in ratios(here, ours, other)]

    return measured


def name(row: Row) -> str:
    """As the tables write a piece of work: `clustered, d = 64, batch 512`."""
    words = [row.case, f"d = {row.dim}" if row.dim else "", f"batch {row.batch}" if row.batch else ""]
    return ", ".join(word for word in words if word)


TRAINING = (
    Goal(
        "training",
        "the trainer against a bare loop with the same EMA and clipping",
        0.95,
        between("training", "fmkit, EMA and clipping", "bare loop, EMA and clipping"),
    ),
    Goal(
        "training",
        "the trainer with EMA and clipping against the barest loop",
        0.80,
        between("training", "fmkit, EMA and clipping", "bare loop"),
    ),
    Goal(
        "training",
        "the trainer without EMA and clipping against torchcfm's loop",
        1.3,
        between("training", "fmkit", "torchcfm"),
    ),
    Goal(
        "training",
        "the same, compiled, against torchcfm's loop",
        1.3,
        between("training", "fmkit, compiled", "torchcfm"),
    ),
    Goal(
        "training",
        "the compiled step against the eager one",
        1.0,
        between("training", "fmkit, compiled", "fmkit"),
    ),
)
COUPLED = (
    Goal(
        "coupled",
        "a step with exact minibatch OT against torchcfm's OT-CFM",
        3.0,
        between("coupled", "fmkit, ot", "torchcfm, OT-CFM"),
    ),
    Goal(
        "coupled",
        "a step with semidiscrete OT against one without coupling",
        0.5,
        between("coupled", "fmkit, semidiscrete", "fmkit"),
    ),
)
PAIRING = (
    Goal(
        "pairing",
        "an exact pairing at d = 64 and 784 against torchcfm's, clustered data",
        2.0,
        between("pairing", "fmkit", "torchcfm", lambda row: row.dim != 2 and row.case == "clustered"),
    ),
    Goal(
        "pairing",
        "an exact pairing at d = 64 and 784 against torchcfm's, one Gaussian",
        4.0,
        between("pairing", "fmkit", "torchcfm", lambda row: row.dim != 2 and row.case == "Gaussian"),
    ),
    Goal(
        "pairing",
        "an exact pairing at d = 2 against torchcfm's (the aim is 1.5)",
        1.0,
        between("pairing", "fmkit", "torchcfm", lambda row: row.dim == 2),
    ),
)
SAMPLING = (
    Goal(
        "sampling",
        "the fastest method at equal error against flow_matching's",
        1.5,
        lambda rows: _at_equal_error(rows, "fmkit"),
    ),
    Goal(
        "sampling",
        "the same with `compile=True`, against flow_matching's as it is",
        1.5,
        lambda rows: _at_equal_error(rows, COMPILED["fmkit"]),
    ),
)
DIVERGENCE = (
    Goal(
        "divergence",
        "the exact divergence at batches up to 64, D = 64 and 256, against flow_matching's",
        2.0,
        between("divergence", "fmkit", "flow_matching", lambda row: row.case == "exact" and _wide(row)),
    ),
    Goal(
        "divergence",
        "the exact divergence elsewhere",
        0.9,
        between("divergence", "fmkit", "flow_matching", lambda row: row.case == "exact" and not _wide(row)),
    ),
)
GOALS = (*TRAINING, *COUPLED, *PAIRING, *SAMPLING, *DIVERGENCE)


def _wide(row: Row) -> bool:
    return (row.dim or 0) >= 64 and (row.batch or 0) <= 64


def _at_equal_error(rows: Sequence[Row], ours: str) -> list[tuple[str, Spread]]:
    found = at_equal_error(rows, who=(ours, "flow_matching"))
    return [(f"{work}, error {error:g}", ratio) for work, error, _, _, ratio in found]
