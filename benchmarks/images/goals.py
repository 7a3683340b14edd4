"""What fmkit aims at on a GPU, and whether the rows reach it. On a processor nothing is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.images.tables import faster, rate, utilisation
from benchmarks.peers.goals import Goal
from benchmarks.peers.results import Row, Spread
from benchmarks.peers.tables import table, times

UNET, LARGE = "unet 128", "dit L"
TRAINING = "training"


def fastest(rows: Sequence[Row], network: str) -> tuple[Row, list[Row]] | None:
    """fmkit's fastest contestant in training a network, and all rows beside it."""
    here = [row for row in rows if row.section == TRAINING]
    ours = [row for row in here if row.case == network and row.contestant.startswith("fmkit")]
    return (min(ours, key=lambda row: sorted(row.seconds)[len(row.seconds) // 2]), here) if ours else None


def _throughput(rows: Sequence[Row]) -> list[tuple[str, Spread]]:
    found = fastest(rows, UNET)
    ratio = None if found is None else faster(*found)
    return [] if found is None or ratio is None else [(found[0].contestant, ratio)]


def _utilisation(rows: Sequence[Row]) -> list[tuple[str, Spread]]:
    found = fastest(rows, LARGE)
    return [] if found is None else [(found[0].contestant, utilisation(found[0], rate(found[1])))]


GOALS = (
    Goal(TRAINING, f"images a second of `{UNET}` against torchcfm's script", 2.0, _throughput),
    Goal(TRAINING, f"share of the bf16 matrix rate in training `{LARGE}`", 0.4, _utilisation),
)


def on_gpu(record: dict[str, Any]) -> bool:
    """Whether training was measured on a GPU."""
    run = record["sections"].get(TRAINING)
    return run is not None and run["device"] != "cpu" and not run["quick"]


def goals(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """Every goal with what was measured, by fmkit's fastest settings."""
    lines = []
    for goal in GOALS:
        verdict = goal.verdict(rows) if on_gpu(record) else None
        start = [goal.text, f"{goal.least:g}"]
        if verdict is None:
            why = "not measured" if on_gpu(record) else "not measured here: no GPU"
            lines.append([*start, "", "", why])
        else:
            said = "**not met**" if verdict.missed else "met"
            lines.append([*start, times(verdict.worst), verdict.at, said])
    return table(["goal", "asked", "measured", "with", "verdict"], lines, words=5)
