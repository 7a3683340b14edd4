"""The table of two-dimensional transport, from its results: for a page and for the terminal, one set of lines.

No figure is typed: whatever is shown is a function of the results and of what was published.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmkit.benches.protocol import BATCH, DATA, EULER_STEPS, PUBLISHED, REFERENCE, ROWS, SEEDS, Protocol
from fmkit.errors import ArgumentError

HEAD = ("", "W2", "published", "NPE", "published", "seeds")
FLOOR = "floor"

Result = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of a data set's table: figures over the seeds measured, empty where there are none.

    Attributes:
        label: of the row.
        w2, npe: every seed's, in the order of the seeds.
        published_w2, published_npe: mean and standard deviation, where there are any.
        seeds: those measured.
    """

    label: str
    w2: tuple[float, ...] = ()
    npe: tuple[float, ...] = ()
    published_w2: tuple[float, float] | None = None
    published_npe: tuple[float, float] | None = None
    seeds: tuple[int, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, under `HEAD`."""
        figures = (_over(self.w2), _told(self.published_w2), _over(self.npe), _told(self.published_npe))
        return (self.label, *figures, _seeds(self.seeds))


def lines(results: Sequence[Result], data: str) -> list[Line]:
    """The lines of a data set's table, the floor last."""
    found = []
    others = sorted({r["row"] for r in results if r["data"] == data} - {*ROWS, REFERENCE})
    for name in (*ROWS, *others):
        mine = _of(results, name, data)
        told = PUBLISHED.get((name, data))
        found.append(
            Line(
                ROWS[name].label if name in ROWS else name,
                tuple(r["w2"] for r in mine),
                tuple(r["npe"] for r in mine),
                None if told is None else told.w2,
                None if told is None else told.npe,
                tuple(r["seed"] for r in mine),
            )
        )
    known = _of(results, REFERENCE, data)
    return [*found, Line(FLOOR, tuple(r["floor"] for r in known), seeds=tuple(r["seed"] for r in known))]


def titles(results: Sequence[Result]) -> dict[str, str]:
    """The data sets to show, with their titles: the published ones, and others that there are results of."""
    return {**DATA, **{data: f"N → {data}" for data in sorted({r["data"] for r in results} - {*DATA})}}


def protocol_of(results: Sequence[Result]) -> Protocol:
    """The one protocol that all results were measured with.

    Raises:
        ArgumentError: if there are several: they make no table.
    """
    protocols = {Protocol(**r["protocol"]) for r in results} or {Protocol()}
    if len(protocols) > 1:
        several = "; ".join(sorted(caption(p) for p in protocols))
        raise ArgumentError(f"the results are of several protocols and make no table: {several}")
    return protocols.pop()


def caption(protocol: Protocol) -> str:
    """What was run, and whether it can be held against what was published."""
    said = f"{protocol.steps:,} steps of {BATCH}, {protocol.points:,} points, Euler with {EULER_STEPS} steps"
    return said if protocol.full else f"REDUCED, not comparable with what was published: {said}"


def markdown(results: Sequence[Result]) -> str:
    """A table for each data set, with a caption; of a reduced run the caption says so."""
    parts = [f"{caption(protocol_of(results))}."]
    for data, title in titles(results).items():
        rows = [HEAD, ("---", *["--:"] * (len(HEAD) - 1)), *(line.cells for line in lines(results, data))]
        parts += [f"### {title}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join(parts)


def page(results: Sequence[Result]) -> str:
    """The page of the documentation."""
    parts = [*paragraphs(INTRODUCTION), "## Results", markdown(results), *paragraphs(METHOD), _versions(results)]
    return "\n\n".join(parts) + "\n"


def _of(results: Sequence[Result], row: str, data: str) -> list[Result]:
    return sorted((r for r in results if (r["row"], r["data"]) == (row, data)), key=lambda r: r["seed"])


def _over(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, as publications have it; of one seed its value."""
    if len(values) < 2:
        return "".join(f"{v:.3f}" for v in values)
    return _told((statistics.mean(values), statistics.stdev(values)))


def _told(figure: tuple[float, float] | None) -> str:
    return "" if figure is None else f"{figure[0]:.3f} ± {figure[1]:.3f}"


def _seeds(seeds: Sequence[int]) -> str:
    if not seeds:
        return "none"
    return f"{seeds[0]} to {seeds[-1]}" if tuple(seeds) == SEEDS else ", ".join(map(str, seeds))


def _versions(results: Sequence[Result]) -> str:
    named = sorted({f"{name} {version}" for r in results for name, version in r["versions"].items()})
    return f"Measured with {', '.join(named)}." if named else "Nothing has been measured yet."


def paragraphs(texts: Sequence[str]) -> list[str]:
    """Texts in lines of up to 120 characters; headings and commands as they are."""
    return [
        text
        if text.startswith(("#", "    "))
        else textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)
        for text in texts
    ]


INTRODUCTION = (
    "# Two-dimensional transport",
    """How near do samples come to the data, and how short are their ways? This is the two-dimensional table of [SF]2M
    ([Tong et al. 2024](https://arxiv.org/abs/2307.03672), Table 2), measured again with fmkit: networks trained to
    carry N(0, I) to eight Gaussians and to two moons, by several paths and couplings.""",
    "    fmkit bench transport2d --page docs/benchmarks",
    """measures what is missing in its folder, cell by cell, and writes this page and its [results](transport2d.json).
    It may be stopped at any time. One cell alone: `--row ot-cfm --data moons --seed 42`.""",
    """W2 is the distance of as many samples as there are test points from these; NPE, the normalized path energy, says
    how much longer the ways are than they had to be. Smaller is better for both. Between finite sets W2 does not reach
    0: the floor is the test points' distance from as many fresh ones. Mean ± standard deviation over the seeds.""",
)
METHOD = (
    "## How it is measured",
    """An MLP on [t, x], three hidden layers of 64, SELU; AdamW at 1e-3 with weight decay 1e-5 on the matrices; noise
    sigma 0.1 along the path, which for FM is what is left at the data's end. The training points are fixed and shuffled
    anew in each epoch, and every batch has fresh noise. The figures are those of the last weights, as in the
    publication's code, and not of their average.""",
    """The moons are scikit-learn's: equal halves in every set. Drawn one by one, the halves of two sets of 10,000
    differ by 0.7 % of the points, and W2 between these sets, about 0.09, would say little of the flow.""",
    """W2 is exact, an optimal assignment, and square-rooted. NPE = |E ∫|v|² dt - W2²(q0, q1)| / W2²(q0, q1): the
    expectation over the very trajectories that end in the samples, the integral by the same Euler steps, and W2²(q0,
    q1) between their starting points and the test points. Samples begin at N(0, I) in every row, as in the
    publication, also where the path begins a little wider (N(0, 1.01 I) for I-CFM).""",
    """[SF]2M is shown by its flow: the bridge's velocity is regressed under exact couplings within a batch, and
    followed as an ODE. Its score network is for SDEs, and is not needed here.""",
)
