"""The tables of the page, each a function of the rows: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.nfe.measure import BUDGETS, solvers
from benchmarks.nfe.problems import PATHS
from benchmarks.nfe.results import Candidate, Row, Score, geometric_mean, orders, scores, winner, within

RECOMMENDED = (5, 10, 20, 50)
CLOSE = 1.1  # within ten per cent of the winner's score
SHOWN_TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
LABELS = {"condot": "CondOT", "vp": "VP", "cosine": "cosine"}


def of(rows: Iterable[Row], kind: str, path: str | None = None, data: str | None = None) -> list[Row]:
    """The rows of one kind of field, and perhaps of one path and one data."""
    return [r for r in rows if r.kind == kind and path in (None, r.path) and data in (None, r.data)]


def name(candidate: Candidate) -> str:
    """As the tables write a candidate: `ab3`, or `ab3 0.5` on a grid of that shift."""
    return candidate.solver if candidate.shift in (None, 1.0) else f"{candidate.solver} {candidate.shift:g}"


def number(value: float) -> str:
    """Two digits."""
    return f"{value:.2g}"


def python(row: Row) -> str:
    """The solver of a row as Python: `AB3(steps=19, grid=ShiftedGrid(0.5))`."""
    cls = solvers([row.solver])[row.solver].__name__
    if row.steps is None:
        return f"{cls}({row.tolerance:g}, {row.tolerance:g})"
    return (
        f"{cls}(steps={row.steps})" if row.shift == 1 else f"{cls}(steps={row.steps}, grid=ShiftedGrid({row.shift:g}))"
    )


def recommendation(rows: Sequence[Row], budget: int) -> str:
    """The winner on the exact fields, as Python."""
    best = next(iter(scores(of(rows, "exact"), budget).values()))
    return python(best.rows[0])


def table(head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown; all columns but the first `words` are aligned to the right."""
    rule = ["---" if i < words else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def cell(there: dict[Candidate, Score], candidate: Candidate) -> str:
    """A candidate's error, bold for the winner; empty where it has none."""
    if candidate not in there:
        return ""
    text = number(there[candidate].error)
    return f"**{text}**" if candidate == next(iter(there)) else text


def winners(exact: Sequence[Row]) -> str:
    """The winner at each budget, and under each path."""
    lines = []
    for budget in RECOMMENDED:
        there = scores(exact, budget)
        best, score = next(iter(there.items()))
        close = [name(c) for c, s in there.items() if c != best and s.ratio <= CLOSE * score.ratio]
        each = [name(winner(of(exact, "exact", path), budget)) for path in PATHS]
        figures = [number(score.error), number(score.worst_error)]
        lines.append([str(budget), f"**{name(best)}**", *figures, ", ".join(close) or "none", *each])
    head = ["NFE", "overall", "mean error", "worst error", "within 10 % of it", *LABELS.values()]
    return table(head, lines, words=len(head))


def winners_by_data(exact: Sequence[Row]) -> str:
    """The winner on each data, over all paths, with the overall winner's score there."""
    data = list(dict.fromkeys(r.data for r in exact))
    lines = []
    for budget in RECOMMENDED:
        best, cells = winner(exact, budget), []
        for there in (scores(of(exact, "exact", data=d), budget) for d in data):
            first = next(iter(there))
            behind = there[best].error / there[first].error
            cells.append(
                name(first) if first == best else f"{name(first)} ({name(best)}: {behind:.1f} times its error)"
            )
        lines.append([str(budget), *cells])
    return table(["NFE", *data], lines, words=len(data) + 1)


def recommendations(exact: Sequence[Row]) -> str:
    """The winners as Python."""
    return table(["NFE", "solver"], ([str(n), f"`{recommendation(exact, n)}`"] for n in RECOMMENDED), words=2)


def errors(exact: Sequence[Row], path: str) -> str:
    """Every method of fixed steps on the uniform grid, and what wins on other grids, at each budget under a path."""
    here = of(exact, "exact", path)
    at = {budget: scores(here, budget) for budget in BUDGETS}
    fixed = [Candidate(r.solver, 1.0) for r in here if r.shift]
    shown = dict.fromkeys([*fixed, *(next(iter(there)) for there in at.values())])
    lines = ([name(c), *(cell(there, c) for there in at.values())] for c in shown)
    return table(["solver", *(f"{b} NFE" for b in BUDGETS)], lines)


def grids(exact: Sequence[Row]) -> str:
    """The winning methods on every grid."""
    shifts = sorted({r.shift for r in exact if r.shift})
    lines = []
    for solver in dict.fromkeys(winner(exact, budget).solver for budget in RECOMMENDED):
        for path, label in LABELS.items():
            rows = [r for r in of(exact, "exact", path) if r.solver == solver]
            for budget in RECOMMENDED:
                there = scores(rows, budget)
                lines.append([solver, label, str(budget), *(cell(there, Candidate(solver, s)) for s in shifts)])
    return table(["solver", "path", "NFE", *(f"shift {s:g}" for s in shifts)], lines, words=2)


def tolerances(exact: Sequence[Row]) -> str:
    """Errors and evaluations of adaptive solvers."""
    fields = {r.problem for r in exact}
    lines = []
    for solver in dict.fromkeys(r.solver for r in exact if r.tolerance):
        cells = []
        for tolerance in SHOWN_TOLERANCES:
            rows = [r for r in exact if r.solver == solver and r.tolerance == tolerance]
            nfe = [r.nfe for r in rows]
            mean = number(geometric_mean(r.error for r in rows)) if rows else ""
            cells.append(f"{mean} ({min(nfe)} to {max(nfe)})" if len(rows) == len(fields) else "")
        lines.append([solver, *cells])
    return table(["solver", *(f"{t:g}" for t in SHOWN_TOLERANCES)], lines)


def laws(exact: Sequence[Row], record: dict[str, Any]) -> str:
    """Errors of points beside those of laws, for the winners and for two plain methods."""
    floors = {p["data"]: p["floor"] for p in record["problems"] if p["kind"] == "exact"}
    lines = []
    for budget in RECOMMENDED:
        chosen = within(exact, budget)
        for candidate in dict.fromkeys([Candidate("euler", 1.0), Candidate("midpoint", 1.0), winner(exact, budget)]):
            cells = []
            for data in floors:
                rows = [r for r in chosen[candidate].values() if r.data == data]
                cells += [number(geometric_mean(getattr(r, key) for r in rows)) for key in ("error", "law_error")]
            lines.append([str(budget), name(candidate), *cells])
    lines.append(["", "floor", *(text for floor in floors.values() for text in ("", number(floor)))])
    return table(["NFE", "solver", *(text for d in floors for text in (d, f"{d}, law"))], lines, words=2)


def measured_orders(exact: Sequence[Row]) -> str:
    """The orders seen on each field beside those claimed."""
    lines, data = [], dict.fromkeys(r.data for r in exact)
    for solver, cls in solvers().items():
        seen = {field[::-1]: f"{p:.2f}" for field, p in orders(exact, solver).items()}
        if seen:
            claimed = str(getattr(cls, "order", "none"))
            lines.append([solver, claimed, *(seen.get((d, path), "") for d in data for path in PATHS)])
    return table(["solver", "claimed", *(f"{d}, {label}" for d in data for label in LABELS.values())], lines)


def learned(rows: Sequence[Row]) -> str:
    """The overall winners on trained networks, beside the exact fields of the same data."""
    exact, networks = of(rows, "exact"), of(rows, "learned")
    same = of(exact, "exact", data="ring")
    lines = []
    for budget in RECOMMENDED:
        best, there = winner(exact, budget), scores(networks, budget)
        first = next(iter(there))
        figures = [number(scores(same, budget)[best].error), number(there[best].error), number(there[best].ratio)]
        lines.append([str(budget), name(best), *figures, name(first), number(there[first].error)])
    head = ["NFE", "overall winner", "exact field", "network", "ratio to the best", "best on the network", "its error"]
    return table(head, lines, words=2)
