"""The tables of the page, each a function of the rows: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.peers.goals import Goal
from benchmarks.peers.results import Row, Spread, ratio, spread
from benchmarks.peers.sampling import COMPILED, at_equal_error


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


def stages(rows: Sequence[Row]) -> str:
    """Each stage of the loops beside one another, and all of them together."""
    names = list(dict.fromkeys(row.contestant for row in rows))
    of = {(row.contestant, row.case): row for row in rows}
    lines = [
        [stage, *(duration(spread(of[name, stage].seconds).median) for name in names)]
        for stage in dict.fromkeys(row.case for row in rows)
    ]
    turns = {name: zip(*(row.seconds for row in rows if row.contestant == name), strict=True) for name in names}
    lines.append(["a step", *(duration(spread(map(sum, turns[name])).median) for name in names)])
    return table(["stage", *names], lines)


def contestants(rows: Sequence[Row], against: str) -> str:
    """Every contestant's time at every size, and how many times faster `against` is."""
    lines = []
    for row in rows:
        base = next(r for r in rows if r.work == row.work and r.contestant == against)
        time = spread(row.seconds)
        span = f"{duration(time.low)} to {duration(time.high)}"
        lines.append([str(row.batch), row.contestant, duration(time.median), span, times(ratio(base, row))])
    return table(["batch", "contestant", "a step", "quartiles", f"{against} is faster by"], lines, words=2)


def pairings(rows: Sequence[Row]) -> str:
    """Every problem with the times of all, how many times faster fmkit is, and how far from the optimum each may be."""
    others = [name for name in dict.fromkeys(row.contestant for row in rows) if name != "fmkit"]
    lines = []
    for base in (row for row in rows if row.contestant == "fmkit"):
        there = {row.contestant: row for row in rows if row.work == base.work}
        cells = [base.case, str(base.dim), str(base.batch), duration(spread(base.seconds).median)]
        for name in others:
            found = there.get(name)
            cells += [duration(spread(found.seconds).median), times(ratio(base, found))] if found else ["", ""]
        figures = [there[name].figure for name in ("fmkit", "torchcfm") if name in there]
        lines.append([*cells, *("" if figure is None else f"{figure:.1g}" for figure in figures)])
    head = ["data", "d", "batch", "fmkit", *(text for name in others for text in (name, "faster by"))]
    return table([*head, "fmkit above optimum", "torchcfm above optimum"], lines)


def evaluations(rows: Sequence[Row]) -> str:
    """Every evaluation with the times of both."""
    lines = [
        [
            ours.case,
            str(ours.dim),
            str(ours.batch),
            duration(spread(ours.seconds).median),
            duration(spread(other.seconds).median),
            times(ratio(ours, other)),
            "" if ours.figure is None else f"{ours.figure:.1g}",
        ]
        for ours in rows
        for other in rows
        if ours.contestant == "fmkit" and other.contestant == "flow_matching" and ours.work == other.work
    ]
    return table(["divergence", "D", "batch", "fmkit", "flow_matching", "faster by", "fmkit's relative error"], lines)


def equal_errors(rows: Sequence[Row]) -> str:
    """The fastest method of either library at every error, as they are and compiled."""
    mine, theirs = COMPILED["fmkit"], COMPILED["flow_matching"]
    against = {
        who: {(work, error): faster for work, error, _, _, faster in at_equal_error(rows, who=who)}
        for who in ((mine, "flow_matching"), (mine, theirs))
    }
    lines = (
        [
            *(work, f"{error:g}", ours.partition(" ")[2], other.partition(" ")[2], times(faster)),
            *(times(found[work, error]) if (work, error) in found else "" for found in against.values()),
        ]
        for work, error, ours, other, faster in at_equal_error(rows)
    )
    columns = ["faster by", "with fmkit compiled", "with both compiled"]
    return table(["field", "error", "fmkit's fastest", "flow_matching's fastest", *columns], lines, words=4)


def same_methods(rows: Sequence[Row], settings: Sequence[float]) -> str:
    """The methods that both have, at the same setting."""
    lines = []
    for ours in rows:
        library, _, method = ours.contestant.partition(" ")
        for other in rows:
            alike = (other.contestant, other.setting) == (f"flow_matching {method}", ours.setting)
            if library == "fmkit" and alike and ours.work == other.work and ours.setting in settings:
                cells = [f"{ours.case}, batch {ours.batch}", method, f"{ours.setting:g}"]
                figures = [f"{row.figure:.2g}" if row.figure is not None else "" for row in (ours, other)]
                lines.append([*cells, *figures, times(ratio(ours, other))])
    head = ["field", "method", "steps or tolerance", "fmkit's error", "flow_matching's error", "faster by"]
    return table(head, lines, words=2)


def footprints(rows: Sequence[Row]) -> str:
    """Import times and sizes."""
    lines = []
    for name in dict.fromkeys(row.contestant for row in rows):
        there = {row.case: row for row in rows if row.contestant == name}
        cells = [name]
        if "import" in there:
            taken = spread(there["import"].seconds)
            cells += [duration(taken.median), f"{duration(taken.low)} to {duration(taken.high)}"]
        else:
            cells += ["", ""]
        cells += [f"{number(there['alone'].figure or 0)} MB" if "alone" in there else ""]
        whole = there.get("with what it needs")
        cells += [f"{number(whole.figure or 0)} MB", f"{whole.setting:.0f}"] if whole else ["", ""]
        lines.append(cells)
    return table(["package", "import", "quartiles", "alone", "with what it needs", "packages"], lines)
