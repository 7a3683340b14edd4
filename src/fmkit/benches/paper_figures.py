"""The figures of the paper's experiment: curves during training and against NFE, strips of samples and of paths."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmkit.benches.paper_protocol import BUDGETS, METHODS, Protocol
from fmkit.plots import figure
from fmkit.saving import read_tensors, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]

COLOURS = dict(zip(METHODS, ("#8a8f9c", "#d1495b", "#e8963a", "#2e9e7a", "#2f6fde"), strict=True))
NAMES = {"euler": "Euler", "midpoint": "midpoint"}  # of solvers, where capitals are not all there is to it


def draw(results: Sequence[Result], strips: Path, folder: Path) -> list[str]:
    """Write the figures as PNG; their names, for the page.

    Args:
        results: of one protocol.
        strips: the folder with the cells' tensors; a method without them has no strip.
        folder: where the pictures go.

    Raises:
        ArgumentError: without matplotlib.
    """
    there = [name for name in METHODS if any(r["method"] == name for r in results)]
    tensors = {name: found for name in there if (found := _tensors(results, name, strips)) is not None}
    made = {"training": _training(results, there), "fid": _solvers(results, there, "fid", "FID")}
    made["error"] = _solvers(results, there, "rmse", "RMSE of a pixel, against 1,000 NFE")
    if tensors:
        levels = max(float(v["by_nfe"][-1].max()) for v in tensors.values())
        by_nfe = [*(f"{nfe} NFE" for nfe in BUDGETS), "1,000 NFE"]
        made["samples"] = _strips({k: v["by_nfe"] for k, v in tensors.items()}, by_nfe, levels)
        moments = len(next(iter(tensors.values()))["path"])
        at = ["noise", *(f"t = {k / (moments - 1):.2f}" for k in range(1, moments - 1)), "sample"]
        made["paths"] = _strips({k: v["path"] for k, v in tensors.items()}, at, levels, shown=1)
    for name, picture in made.items():
        content = io.BytesIO()
        picture.savefig(content, format="png", bbox_inches="tight")
        write_bytes(folder / f"paper-{name}.png", content.getvalue())
    return [*made]


def _tensors(results: Sequence[Result], name: str, strips: Path) -> dict[str, Tensor] | None:
    first = next(r for r in results if r["method"] == name)
    path = strips / f"{Protocol(**first['protocol']).stem}_{name}_{first['seed']}.safetensors"
    return read_tensors(path)[0] if path.is_file() else None


def _training(results: Sequence[Result], there: Sequence[str]) -> Figure:
    made = figure(9.0, 3.6)
    for axes, key, title in zip(made.subplots(1, 2), ("fid", "nfe"), ("FID", "NFE of dopri5"), strict=True):
        for name in there:
            mine = [r["during"] for r in results if r["method"] == name]
            points = [
                (statistics.mean(d["step"] for d in at), statistics.mean(d[key] for d in at))
                for at in zip(*mine, strict=True)
            ]
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[name], label=METHODS[name].label)
        axes.set(xlabel="training step", title=f"{title} during training")
        _plain(axes)
    _legend(made, axes)
    return made


def _solvers(results: Sequence[Result], there: Sequence[str], key: str, label: str) -> Figure:
    made = figure(11.0, 3.2)
    solvers = list(dict.fromkeys(row["solver"] for row in results[0]["few_steps"]))
    panels = made.subplots(1, len(solvers), sharey=True)
    for axes, solver in zip(panels, solvers, strict=True):
        for name in there:
            mine = [[r for r in m["few_steps"] if r["solver"] == solver] for m in results if m["method"] == name]
            points = [(at[0]["nfe"], statistics.mean(r[key] for r in at)) for at in zip(*mine, strict=True)]
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[name], label=METHODS[name].label)
        axes.set(xscale="log", yscale="log", xlabel="NFE", title=NAMES.get(solver, solver.upper()))
        axes.set_xlim(0.7 * BUDGETS[0], 1.2 * BUDGETS[-1])
        axes.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS])
        axes.set_xticks([], minor=True)
        _plain(axes)
    if key == "fid":  # less than a power of ten or two: plain numbers, and enough of them
        from matplotlib.ticker import LogLocator, ScalarFormatter

        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].set_yticks([], minor=True)
    panels[0].set_ylabel(label)
    _legend(made, panels[0])
    return made


def _strips(strips: dict[str, Tensor], titles: Sequence[str], top: float, shown: int = 4) -> Figure:
    """A row for each method and a panel for each title, of `shown` images side by side."""
    made = figure((0.55 * shown + 0.4) * len(titles) + 1.6, 0.75 * len(strips) + 0.5)
    panels = made.subplots(len(strips), len(titles), squeeze=False)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for row, (name, images) in zip(panels, strips.items(), strict=True):
        for axes, batch in zip(row, images, strict=True):
            joined = batch[:shown].permute(2, 0, 3, 1).flatten(1, 2)  # (H, shown * W, C)
            axes.imshow((joined / top).clamp(0, 1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(METHODS[name].label, rotation=0, ha="right", va="center", fontsize=9)
    return made


def _legend(made: Figure, axes: Any) -> None:
    """One for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
