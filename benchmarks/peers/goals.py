"""What fmkit aims at beside its peers, and whether the rows reach it.

A goal looks at every piece of work that it is about; it is met if the median ratio of each is at least what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.peers.results import Row, Spread, ratios

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
GOALS = (*TRAINING, *COUPLED)
