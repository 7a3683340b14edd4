"""The tables of the page, each a function of the rows: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.peers.goals import Goal
from benchmarks.peers.results import Row, Spread, ratio, spread


def table(head: Sequence[str], lines: Iterable[Iterable[str]], words: int = 1) -> str:
    """A table in Markdown; all columns but the first `words` are aligned to the right."""
    rule = ["---" if i < words else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def number(value: float) -> str:
    """Three digits, without an exponent where that is short."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text else text


def times(value: Spread) -> str:
    """A ratio with its quartiles."""
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


def duration(seconds: float) -> str:
    """Microseconds, milliseconds or seconds."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{number(seconds * factor)} {unit}"
    raise AssertionError("unreachable")


def goals(asked: Iterable[Goal], rows: Sequence[Row]) -> str:
    """Every goal with what was measured."""
    return table(["section", "goal", "asked", "measured", "at", "verdict"], (_goal(g, rows) for g in asked), words=6)


def _goal(goal: Goal, rows: Sequence[Row]) -> list[str]:
    start = [goal.section, goal.text, f"{goal.least:g}"]
    verdict = goal.verdict(rows)
    if verdict is None:
        return [*start, "", "", "not measured"]
    said = f"**not met** at {len(verdict.missed)} of {verdict.measured}" if verdict.missed else "met"
    return [*start, times(verdict.worst), verdict.at, said]


def contestants(rows: Sequence[Row], against: str) -> str:
    """Every contestant's time at every size, and how many times faster `against` is."""
    lines = []
    for row in rows:
        base = next(r for r in rows if r.work == row.work and r.contestant == against)
        time = spread(row.seconds)
        span = f"{duration(time.low)} to {duration(time.high)}"
        lines.append([str(row.batch), row.contestant, duration(time.median), span, times(ratio(base, row))])
    return table(["batch", "contestant", "a step", "quartiles", f"{against} is faster by"], lines, words=2)
