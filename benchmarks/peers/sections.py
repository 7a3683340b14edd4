"""The sections of the benchmark: what each is called, how it is run, and how its rows are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import divergence, footprint, pairing, profile, sampling, tables, training
from benchmarks.peers.results import Note, Row

Peers = Mapping[str, Any]
SHOWN_SETTINGS = (16, 1e-3)  # of the table of same methods


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
        loss. The network takes most of every step, so a loop is at most as many times faster than a peer's as the bare
        loop is; only compiling goes beyond that.""",
        lambda peers, repeats, quick: training.rows(
            training.contestants(peers), repeats=repeats, steps=5 if quick else training.STEPS
        ),
        lambda rows: [tables.contestants(rows, "fmkit")],
    ),
    Section(
        profile.SECTION,
        "Where a step's time goes",
        """The two loops with averaging and clipping at batch 256, stage by stage; stopwatches add a few microseconds to
        each. The trainer's optimizer calls the fused kernel without what torch does around it at every step; its draws
        of x0 and x1 are those of 32 steps at once, each step's share of them counted; times and coefficients are in
        float64, and values are looked at.""",
        lambda peers, repeats, quick: profile.rows(repeats=repeats, steps=5 if quick else training.STEPS),
        lambda rows: [tables.stages(rows)],
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
    Section(
        pairing.SECTION,
        "Exact pairings",
        """The pairing of a batch as a training step asks for it: batches of noise and data in, pairs out. torchebm's is
        an auction. How far the cost may be above the optimum, relatively, is bounded by dual potentials, which need no
        solver: 0 means that the pairing is certainly the best one. torchcfm's is the cost of its plan, before pairs are
        drawn from it with replacement. What keeps small batches from being faster is the part that both share: the
        matrix of costs, which fmkit takes in float64 to be exact (a third or more of the time at 128 points in 784
        dimensions, where the solver itself takes a twentieth). Tried and slower: the head start in torch, fewer
        temperatures, sparse assignment on the cheapest edges, lapx. Costs in float32 would not be exact.""",
        lambda peers, repeats, quick: pairing.rows(
            pairing.contestants(peers), pairing.plans(peers), repeats=repeats, quick=quick
        ),
        lambda rows: [tables.pairings(rows)],
    ),
    Section(
        sampling.SECTION,
        "Sampling at equal error",
        """Both libraries follow the same field from the same starts: that of eight Gaussians on a ring in closed form,
        and a network of three hidden layers of 64 trained on them, in float64. The error is the root-mean-square
        distance from the end points of a tight reference, in units of the data's spread. Every method runs at many
        settings; its time at an error between two of them is interpolated. First each library's fastest method at an
        error, as they are and with compiled fields (fmkit's by its switch; flow_matching's users compile their model
        themselves), then the same method of both. The time is nearly all the field's, so a ratio is one of numbers
        of evaluations. Tried without gain: predictor and corrector of order
        5; the same methods in the prediction of the data (exponential integrators), which need more evaluations for
        every error down to 0.0003; grids with shorter steps at one end, which gain at some errors and lose at
        others.""",
        lambda peers, repeats, quick: sampling.rows(sampling.contestants(peers), repeats=repeats, quick=quick),
        lambda rows: [tables.equal_errors(rows), tables.same_methods(rows, SHOWN_SETTINGS)],
    ),
    Section(
        divergence.SECTION,
        "Divergence",
        """One evaluation of a network of three hidden layers of 64 with its divergence, as every stage of a likelihood
        needs it. flow_matching's is the function that its own solver hands to torchdiffeq. Hutchinson's has one probe.
        The error of the exact one is relative, against the trace of the whole Jacobian at one point.""",
        lambda peers, repeats, quick: divergence.rows(divergence.contestants(peers), repeats=repeats, quick=quick),
        lambda rows: [tables.evaluations(rows)],
    ),
    Section(
        footprint.SECTION,
        "Import and installation",
        """The import of what the other sections use, in fresh processes, with torch alone as the limit; and the size of
        a package by itself and with all that pip installs for it besides torch and what torch needs.""",
        lambda peers, repeats, quick: footprint.rows(
            footprint.STATEMENTS, {} if quick else footprint.SOURCES, footprint.installed, repeats=repeats
        ),
        lambda rows: [tables.footprints(rows)],
    ),
)
