"""The sections of the benchmark: what each is called, how it is run, and how its rows are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import tables, training
from benchmarks.peers.results import Note, Row

Peers = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: as the command and the rows call it.
        title: of its chapter on the page.
        text: what the chapter says before its tables.
        run: `(peers, repeats, quick) -> rows and notes`.
        tables: the tables of its rows.
    """

    name: str
    title: str
    text: str
    run: Callable[[Peers, int, bool], Iterable[Row | Note]]
    tables: Callable[[Sequence[Row]], list[str]]


SECTIONS = (
    Section(
        training.SECTION,
        "Training steps",
        """Conditional flow matching on eight Gaussians in two dimensions, with a network of three hidden layers of 64.
        The bare loops are written by hand with fused AdamW and do nothing else; the peers' are those that their
        documents show, Adam included. fmkit's trainer draws every number from a stream of its own, and looks at each
        loss.""",
        lambda peers, repeats, quick: training.rows(
            training.contestants(peers), repeats=repeats, steps=5 if quick else training.STEPS
        ),
        lambda rows: [tables.contestants(rows, "fmkit")],
    ),
    Section(
        training.COUPLED,
        "Training steps with optimal transport",
        """The same at batch 512, with the coupling of each batch. torchcfm solves the problem and then draws the pairs
        from its plan with replacement; fmkit takes the permutation.""",
        lambda peers, repeats, quick: training.coupled_rows(
            training.coupled(peers), repeats=repeats, steps=2 if quick else training.COUPLED_STEPS
        ),
        lambda rows: [tables.contestants(rows, "fmkit, ot")],
    ),
)
BY_NAME = {section.name: section for section in SECTIONS}
