"""Error against NFE, a panel for each path: a few methods stand out, all others are a grey background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.nfe.results import Row, geometric_mean
from benchmarks.nfe.tables import LABELS, of
from fmkit.plots import figure

# Colours that hold on white and on slate, told apart without colour by their markers.
SHOWN = {
    "euler": ("#d55e00", "v"),
    "midpoint": ("#cc79a7", "D"),
    "rk4": ("#009e73", "s"),
    "abm3": ("#0f85d1", "o"),
    "abm4": ("#7b61d9", "^"),
    "dopri5": ("#c98a00", "*"),
}
THEMES = {"light": ("#1f2430", "#c3c8d2"), "dark": ("#e2e4ec", "#4a5064")}  # ink, background curves
OTHERS = "others"
LIMITS = (1e-9, 2.0)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Both pictures, for a light page and for a dark one."""
    exact = of(rows, "exact")
    for theme, (ink, faint) in THEMES.items():
        with matplotlib.rc_context({"svg.hashsalt": "fmkit", "svg.fonttype": "path"}):
            made = figure(10.0, 4.2)
            panels = made.subplots(1, len(LABELS), sharex=True, sharey=True)
            for axes, (path, label) in zip(panels, LABELS.items(), strict=True):
                _panel(axes, of(exact, "exact", path), ink, faint)
                axes.set_title(label, color=ink)
            panels[0].set_ylabel("error, in spreads of the data", color=ink)
            drawn = {line.get_label(): line for line in panels[0].get_lines()}
            labels = [label for label in (*SHOWN, OTHERS) if label in drawn]
            made.legend(
                [drawn[label] for label in labels],
                labels,
                loc="outside lower center",
                ncols=len(labels),
                frameon=False,
                labelcolor=ink,
            )
            made.savefig(folder / f"nfe-{theme}.svg", transparent=True, metadata={"Date": None})


def _panel(axes: Any, rows: Sequence[Row], ink: str, faint: str) -> None:
    for solver, points in curves(rows).items():
        colour, marker = SHOWN.get(solver, (faint, ""))
        strong = {"linewidth": 1.8, "markersize": 5, "zorder": 3, "label": solver}
        style = strong if marker else {"linewidth": 0.8, "label": OTHERS}
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, **style)
    axes.set(xscale="log", yscale="log", ylim=LIMITS, xlim=(4, 900))
    axes.set_xlabel("NFE", color=ink)
    ticks = [5, 10, 20, 50, 100, 200, 500]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.25, color=faint)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_color(ink)
        spine.set_visible(side in ("left", "bottom"))


def curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """(NFE, error) of each solver on the uniform grid or by tolerance, geometric means over the data, by setting."""
    data = {r.data for r in rows}
    groups: dict[str, dict[tuple[Any, Any], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.shift in (None, 1.0):
            groups[row.solver][row.steps, row.tolerance].append(row)
    return {
        solver: sorted(
            (geometric_mean(r.nfe for r in there), geometric_mean(r.error for r in there))
            for there in settings.values()
            if len(there) == len(data)
        )
        for solver, settings in groups.items()
    }
