"""The measured rows, and what follows from them: how many times faster one contestant is than another.

    ratio of turn k = seconds of the other in turn k / seconds of ours in turn k

The two of a turn ran one after the other, so the load of the machine hardly enters. A ratio is reported as the median
over the turns, with its quartiles.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One contestant on one piece of work.

    Attributes:
        section: which part of the benchmark.
        contestant: who.
        case: what the numbers beside it do not say, as the kind of data.
        dim: the dimension of a sample.
        batch: how many samples.
        setting: a solver's steps or tolerance.
        seconds: of each turn, in order.
        figure: what the section says of the result, as its error.
    """

    section: str
    contestant: str
    case: str = ""
    dim: int | None = None
    batch: int | None = None
    setting: float | None = None
    seconds: tuple[float, ...] = ()
    figure: float | None = None

    @property
    def work(self) -> tuple[str, str, int | None, int | None]:
        """What was done, whoever did it."""
        return self.section, self.case, self.dim, self.batch


class Note(NamedTuple):
    """What a section could not measure, and why, or what it was told; whole sentences."""

    section: str
    text: str


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """The median and the quartiles."""
    low, median, high = np.quantile(np.array(list(values), dtype=float), [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


def ratio(ours: Row, other: Row) -> Spread:
    """How many times faster ours is: the ratios of turns.

    Raises:
        ValueError: if the two did not take the same turns.
    """
    return spread(b / a for a, b in zip(ours.seconds, other.seconds, strict=True))


def ratios(rows: Sequence[Row], ours: str, other: str) -> list[tuple[Row, Spread]]:
    """On every piece of work that both did: our row, and how many times faster ours is."""
    theirs = {row.work: row for row in rows if row.contestant == other}
    mine = (row for row in rows if row.contestant == ours and row.work in theirs)
    return [(row, ratio(row, theirs[row.work])) for row in mine]


def write(rows: Iterable[Row], file: Path) -> None:
    """The rows as CSV, numbers with four digits, the turns of a row in one field."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([_text(value) for value in row] for row in rows)


def read(file: Path) -> list[Row]:
    """The rows of a CSV written by `write`."""
    with file.open(newline="") as lines:
        return [_row(line) for line in csv.DictReader(lines)]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{v:.4g}" for v in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(line: dict[str, str]) -> Row:
    def number(key: str) -> float | None:
        return float(line[key]) if line[key] else None

    return Row(
        line["section"],
        line["contestant"],
        line["case"],
        int(line["dim"]) if line["dim"] else None,
        int(line["batch"]) if line["batch"] else None,
        number("setting"),
        tuple(map(float, line["seconds"].split())),
        number("figure"),
    )
