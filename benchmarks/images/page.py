"""The page of the documentation, written from the rows and the record of the run: no figure on it is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.images.goals import goals
from benchmarks.images.sections import SECTIONS
from benchmarks.peers.page import paragraph, runs
from benchmarks.peers.results import Row


def page(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """The whole page, in Markdown."""
    parts = ["# Images: speed", *_introduction(record), "## Goals", _rule(), goals(rows, record)]
    for section in SECTIONS:
        if section.name not in record["sections"]:
            continue
        here = [row for row in rows if row.section == section.name]
        parts += [f"## {section.title}", paragraph(section.text), *section.tables(here)]
        if notes := record["sections"][section.name]["notes"]:
            parts.append("\n".join(f"- {note}" for note in notes))
    parts += ["## How it is measured", _method(), runs(record)]
    return "\n\n".join(parts) + "\n"


def _introduction(record: dict[str, Any]) -> list[str]:
    devices = sorted({run["device"] for run in record["sections"].values()})
    small = "That is a small run: it shows that the command works, and little else. " if devices == ["cpu"] else ""
    first = f"""How many images a second are trained on and sampled, and how much of the device is that? Measured on:
        {", ".join("a processor" if device == "cpu" else device for device in devices)}. {small}On a GPU the same
        command measures larger networks, at full batches, with every setting that the trainer has for it."""
    second = """measures what the device is good for (`--make` makes the environment with torchcfm if need be), and
        writes this page, its [rows](images.csv) and the [record](images.json) of the run."""
    doubt = [paragraph(said)] if (said := _doubt(record)) else []
    return [paragraph(first), *doubt, f"    {record['command']} --make", paragraph(second)]


def _doubt(record: dict[str, Any]) -> str:
    """What is to be said of a run on a processor that was not alone there."""
    beside = [run for run in record["sections"].values() if max(run["load"]) > 2 * run["threads"]]
    if not beside or any(run["device"] != "cpu" for run in beside):
        return ""
    load = max(max(run["load"]) for run in beside)
    return f"""**Others' work ran on the same cores, a load of up to {load:.0f}: no speed below is worth anything,
        shares and ratios included.** What stands are the sizes of the networks."""


def _rule() -> str:
    return paragraph("Judged on a GPU only, by fmkit's fastest settings; quartiles over the windows in brackets.")


def _method() -> str:
    return paragraph(
        """The images are 2,048 of 32x32x3 random numbers, in the device's memory for all, since speed does not depend
        on what they show: the script's own loader is left out, which would only cost it time. Each contestant takes a
        few steps that do not count (compiling among them), and then windows of several steps; the device is waited for
        at their ends only. Times are the median over the windows, and a ratio is that of two contestants' windows in
        their order. The share of the matrix rate is the model's operations (those of an evaluation and its gradients;
        what activation checkpointing works out twice does not count) a second, over those of a plain product of two
        large matrices, measured in the same run on the same device: on a GPU in bfloat16, whatever precision the
        contestant has; on a processor, which may have no such arithmetic, in float32."""
    )
