"""The page of the documentation, written from the rows and the record of the run: no figure on it is typed by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.peers import tables
from benchmarks.peers.goals import GOALS
from benchmarks.peers.results import Row
from benchmarks.peers.sections import SECTIONS


def page(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """The whole page, in Markdown."""
    measured = [section for section in SECTIONS if section.name in record["sections"]]
    parts = ["# fmkit beside its peers", _introduction(record), "## Goals", _rule(), tables.goals(GOALS, rows)]
    for section in measured:
        here = [row for row in rows if row.section == section.name]
        parts += [f"## {section.title}", paragraph(section.text), *section.tables(here)]
        if notes := record["sections"][section.name]["notes"]:
            parts.append("\n".join(f"- {note}" for note in notes))
    parts += ["## How it is measured", _method(), runs(record)]
    return "\n\n".join(parts) + "\n"


def paragraph(text: str) -> str:
    """Text in lines of up to 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _introduction(record: dict[str, Any]) -> str:
    first = """The same work by fmkit and by its peers, each from its package, in one process on one torch. All figures
        are of the run described [below](#how-it-is-measured); none is taken from anywhere. What travels to another
        machine is ratios, not times."""
    second = """measures everything, and writes this page, its [rows](peers.csv) and the [record](peers.json) of the
        run."""
    return f"{paragraph(first)}\n\n    {record['command']}\n\n{paragraph(second)}"


def _rule() -> str:
    return paragraph(
        """A ratio says how many times faster fmkit is: 2 is half the time. It is the median over the turns, with its
        quartiles in brackets, at the piece of work where it is least; a goal is met if no piece of work is below it."""
    )


def _method() -> str:
    return paragraph(
        """Contestants take turns, the first of them another one each time, after a turn that does not count; a ratio is
        that of two times of the same turn, so that other load on the machine slows both. Where one call is short, a
        turn takes the mean of several. Networks begin with the same weights, data is in memory, and the number of
        threads is one setting of the process. A setting of the whole process that a peer changes at its import is put
        back. The load is that of the last minute, before and after a section; what is above the threads used is
        others' work, and makes figures doubtful."""
    )


def runs(record: dict[str, Any]) -> str:
    """When, where and with what each section was measured."""
    head = ["section", "date", "commit", "turns", "minutes", "load", "threads", "machine"]
    lines = tables.table(head, (_run(name, run) for name, run in record["sections"].items()), words=len(head))
    installed: dict[str, list[str]] = {}
    for name, run in record["sections"].items():
        packages = [f"torch {run['torch']}", *(f"{key} {value}" for key, value in run["versions"].items())]
        installed.setdefault(", ".join(packages), []).append(name)
    return "\n\n".join([lines, *(paragraph(f"With {what}: {', '.join(names)}.") for what, names in installed.items())])


def _run(name: str, run: dict[str, Any]) -> Iterable[str]:
    turns = f"{run['repeats']}{', quick: of no worth' if run['quick'] else ''}"
    load = " to ".join(f"{value:.1f}" for value in run["load"])
    figures = [run["date"], run["commit"], turns, f"{run['minutes']:.1f}", load, str(run["threads"])]
    return [name, *figures, run["machine"]]
