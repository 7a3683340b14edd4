"""The page of the documentation, written from the rows and the record of the run: no figure on it is typed by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.nfe import tables
from benchmarks.nfe.measure import BUDGETS, SMALL
from benchmarks.nfe.problems import DATA, PATHS
from benchmarks.nfe.results import ASYMPTOTIC, FINEST, Row, geometric_mean, scores
from benchmarks.nfe.tables import LABELS, name, number, of

TOLERANCE = 1e-5  # dopri5's own, the default of a flow
LOOSE = 1e-3
PICTURE = "Error against NFE under three paths: geometric means over the data, on the uniform grid"


def page(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """The whole page, in Markdown."""
    exact = of(rows, "exact")
    parts = [
        "# NFE against error",
        _introduction(record),
        "## Which solver",
        _rule(),
        tables.winners(exact),
        paragraph(
            """The answer depends on the data: what is wide is best followed in equal steps, and the narrower it is, the
            more do the steps near it decide. By data, over the paths:"""
        ),
        tables.winners_by_data(exact),
        _grid_note(),
        tables.recommendations(exact),
        f"![{PICTURE}](nfe-light.svg#only-light)\n![{PICTURE}](nfe-dark.svg#only-dark)",
        "## The default",
        _default(exact, of(rows, "learned")),
        "## Errors",
        "Geometric means over the data; bold is the least of all solvers and grids.",
        *(part for path in PATHS for part in (f"### {LABELS[path]}", tables.errors(exact, path))),
        "## Time grids",
        "The winning methods on each grid: geometric means over the data. Shift 1 is the uniform grid.",
        tables.grids(exact),
        "## Adaptive solvers",
        _adaptive(),
        tables.tolerances(exact),
        "## What a user sees",
        _law(record),
        tables.laws(exact, record),
        "## Measured orders",
        _orders(),
        tables.measured_orders(exact),
        "## On a trained network",
        _learned(record),
        tables.learned(rows),
        "## How it is measured",
        *_method(record),
    ]
    return "\n\n".join(parts) + "\n"


def paragraph(text: str) -> str:
    """Text in lines of up to 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _introduction(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    first = """Which solver to sample with, when the field may be evaluated so many times? Here every ODE solver that
        fmkit registers follows exact fields: the marginal velocities of Gaussian mixtures in closed form
        ([`MixtureOracle`][fmkit.oracle.MixtureOracle]), under CondOT, VP and cosine. The error is the
        root-mean-square distance of the end points from the exact ones, in units of the data's spread; NFE, the
        number of evaluations of the field, is what the solver reports."""
    second = f"""writes this page, its pictures, the [rows](nfe.csv) and the [record](nfe.json) of the run. Last on
        {record["date"]}, with {versions}: {record["minutes"]:.1f} minutes of processor time on a machine of
        {record["machine"]}."""
    return f"{paragraph(first)}\n\n    {record['command']}\n\n{paragraph(second)}"


def _rule() -> str:
    return paragraph(
        """A solver takes the most steps that cost no more than the budget. On each field (a path and a mixture) its
        error is divided by the least error that any solver has there; the least geometric mean of these ratios over
        all fields wins. The mean errors are geometric too."""
    )


def _grid_note() -> str:
    return paragraph(
        """A number behind a name is the shift of its time grid ([`ShiftedGrid`][fmkit.solvers.ShiftedGrid]): below 1,
        steps are shorter near the data. Without a number the steps are equal. In Python:"""
    )


def _default(exact: Sequence[Row], learned: Sequence[Row]) -> str:
    rows = [r for r in exact if r.solver == "dopri5" and r.tolerance == TOLERANCE]
    best, score = next((c, s) for c, s in scores(exact, BUDGETS[-1]).items() if c.shift)
    loose = max(r.error for r in exact if r.solver == "dopri5" and r.tolerance == LOOSE)
    taught = [r.nfe for r in learned if r.solver == "dopri5" and r.tolerance == TOLERANCE]
    return paragraph(
        f"""A flow that is told nothing takes dopri5 at {TOLERANCE:g}: {min(r.nfe for r in rows)} to
        {max(r.nfe for r in rows)} evaluations here, {min(taught)} to {max(taught)} on the trained networks below,
        with an error of {number(geometric_mean(r.error for r in rows))} ({number(max(r.error for r in rows))} at
        worst). The best method of fixed steps in {BUDGETS[-1]} evaluations is {name(best)}, with
        {number(score.error)} ({number(score.worst_error)} at worst). dopri5 finds the number of steps that a field
        needs, which nobody knows of a new one, and its tolerance holds for likelihoods too: it stays the default.
        Looser it cannot be trusted: at {LOOSE:g} its error is up to {number(loose)}. Where the budget is known, the
        table above has the answer."""
    )


def _adaptive() -> str:
    return paragraph(
        f"""Mean error and, in brackets, the least and greatest NFE, by tolerance (relative and absolute alike). To
        torchdiffeq and scipy the batch is one system, so a sample's steps follow from all of them. `scipy-radau` and
        `scipy-lsoda` build a dense Jacobian of it by differences, which count; they are given {SMALL} samples, and
        would need more evaluations for more."""
    )


def _law(record: dict[str, Any]) -> str:
    return paragraph(
        f"""A sample that ends elsewhere may still be a good sample. The law error is the sliced Wasserstein distance
        between the solver's end points and the exact ones, from the same noise and in the same units. Its floor is
        the distance between two independent sets of {record["samples"]} exact samples: so many samples do not show a
        law error below that."""
    )


def _orders() -> str:
    low, high = ASYMPTOTIC
    return paragraph(
        f"""The slope of log error over log steps by least squares, through the {FINEST} finest runs on the uniform
        grid whose error is between {low:g} and {high:g}: empty where there are not so many. Narrow data asks for finer
        steps than these before errors fall as they will in the end."""
    )


def _learned(record: dict[str, Any]) -> str:
    return paragraph(
        f"""Exact fields are smooth, and as stiff as the data is narrow; a network is neither. An MLP (width 128,
        depth 3) was trained for {record["learned_steps"]} steps on the ring under each path, and each solver is held
        against the network's own tight solution. The errors are means over the paths, in the same units as above; the
        ratio is to the best on each path."""
    )


def _method(record: dict[str, Any]) -> list[str]:
    def worst(kind: str) -> str:
        return number(max(p["reference_error"] for p in record["problems"] if p["kind"] == kind))

    used = {p["data"] for p in record["problems"]}
    return [
        "\n".join(f"- `{key}`: {text}" for key, text in DATA.items() if key in used),
        paragraph(
            f"""From {record["samples"]} starts each, in float64. The exact end is that of scipy's DOP853 at
            {record["tight"]:g}; torchdiffeq's dopri8 at the same tolerance is at most {worst("exact")} away
            ({worst("learned")} on the networks). fmkit's own methods run on every grid, torchdiffeq's, which take the
            same steps, on the uniform one. Adaptive solvers run at tolerances from 0.1 downwards, and count at a
            budget with the most evaluations that keep within it on each field, which nobody could choose beforehand."""
        ),
    ]
