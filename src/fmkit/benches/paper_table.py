"""The paper's table of images, from its results. No figure is typed: whatever is shown is a function of the results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fmkit.benches.paper_protocol import METHODS, Protocol
from fmkit.benches.table import paragraphs
from fmkit.errors import ArgumentError

HEAD = ("", "bits/dim", "FID", "NFE", "steps", "seconds", "seeds")
FEW = ("solver", "NFE")
NONE = "not measured"

Result = dict[str, Any]


def protocol_of(results: Sequence[Result]) -> Protocol:
    """The one protocol that all results were measured with.

    Raises:
        ArgumentError: if there are several, which make no table, or no results.
    """
    protocols = {Protocol(**r["protocol"]) for r in results}
    solvers = {tuple(row["solver"] for row in r["few_steps"]) for r in results}
    if not protocols:
        raise ArgumentError("there are no results, and no table without them")
    if len(protocols) > 1:
        raise ArgumentError(f"the results are of several protocols and make no table: {sorted(map(str, protocols))}")
    if len(solvers) > 1:
        raise ArgumentError(f"the results are of several sets of solvers and make no table: {sorted(solvers)}")
    return protocols.pop()


def caption(results: Sequence[Result]) -> str:
    """What was run, and with what budget."""
    p = protocol_of(results)
    budget = f"{p.steps} steps, whatever their time" if p.steps else f"a budget of {p.budget:g} s of training"
    where = ", on a GPU" if p.device == "cuda" else ""
    return (
        f"{p.label}, UNet {p.preset!r}, each method {budget}, batches of {p.batch}; FID of {p.samples} images, "
        f"bits/dim of {results[0]['bits_images']} held-out ones with K = {p.dequantizations}{where}"
    )


def lines(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table under `HEAD`: every method, measured or not, and the held-out images as the floor of FID."""
    found = []
    for name, method in METHODS.items():
        mine = [r for r in results if r["method"] == name]
        if not mine:
            found.append((method.label, NONE, *[""] * (len(HEAD) - 2)))
            continue
        bits = _over([r["bits"] for r in mine], 3)
        if len(mine) == 1 and mine[0]["bits_error"] is not None:
            bits += f" ± {mine[0]['bits_error']:.3f}"
        figures = (bits, _over([r["fid"] for r in mine], 2), _over([r["nfe"] for r in mine], 0))
        spent = (_over([r["steps"] for r in mine], 0), _over([r["training_seconds"] for r in mine], 0))
        found.append((method.label, *figures, *spent, ", ".join(str(r["seed"]) for r in mine)))
    floor = results[0]["held_out"]
    return [*found, (f"{floor['images']} held-out images", "", f"{floor['fid']:.2f}", "", "", "", "")]


def few_step_lines(results: Sequence[Result], key: str) -> list[tuple[str, ...]]:
    """`key` (fid or rmse) of each solver at each number of evaluations, a column for each method that was measured."""
    there = [name for name in METHODS if any(r["method"] == name for r in results)]
    rows = [(*FEW, *(METHODS[name].label for name in there))]
    shown = next(r for r in results if r["method"] == there[0])["few_steps"]
    for i, row in enumerate(shown):
        over = ([r["few_steps"][i][key] for r in results if r["method"] == name] for name in there)
        rows.append((row["solver"], f"{row['nfe']:g}", *(_over(values, 3 if key == "rmse" else 2) for values in over)))
    return rows


def page(results: Sequence[Result], figures: Sequence[str] = ()) -> str:
    """The page of the documentation, with those of its figures that were drawn."""
    few = [_table(few_step_lines(results, key)) for key in ("fid", "rmse")]
    versions = ", ".join(sorted({f"{name} {version}" for r in results for name, version in r["versions"].items()}))
    protocol = protocol_of(results)
    accuracy, features = results[0]["held_out"]["accuracy"], protocol.features
    judged = f"The classifier knows {accuracy:.1%} of the held-out images. " if features is None else ""
    parts = [
        *paragraphs([text.format(data=protocol.label, command=protocol.command) for text in INTRODUCTION]),
        "## Results",
        *paragraphs((f"{caption(results)}.",)),
        _table([HEAD, *lines(results)]).replace(" ± ", "&nbsp;±&nbsp;"),
        "### FID against NFE",
        few[0],
        "### Error against NFE",
        *paragraphs(
            ("RMSE of a pixel, in the model's units, from a solution of 1,000 evaluations and the same noise.",)
        ),
        few[1],
        *(f"### {FIGURES[name]}\n\n![{FIGURES[name]}](paper-{name}.png)" for name in figures),
        *paragraphs((*METHOD, JUDGE.format(features or CLASSIFIER))),
        *paragraphs((f"{judged}{_measuring(results)}Measured with {versions}.",)),
    ]
    return "\n\n".join(parts) + "\n"


def _measuring(results: Sequence[Result]) -> str:
    """How long the measurement of a cell took, which is no part of the budget."""
    minutes = [r["measuring_seconds"] / 60 for r in results]
    return f"Measuring a cell took {min(minutes):.1f} to {max(minutes):.1f} minutes more than training it. "


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    under = ("---", *["--:"] * (len(rows[0]) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], under, *rows[1:]))


def _over(values: Sequence[float], digits: int) -> str:
    """The value of one seed; mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


INTRODUCTION = (
    "# The paper's experiment on images: {data}",
    """What does the path do to likelihood, quality and cost? This is the experiment of Flow Matching for Generative
    Modeling ([Lipman et al. 2022](https://arxiv.org/abs/2210.02747), Section 6), at a scale of one's own: one network,
    trained in five ways, with the same seeds, batches and budget.""",
    "    {command} --page FOLDER",
    """measures what is missing in its folder, cell by cell, and writes this page. It may be stopped at any time: cells
    that are done are not run again. One alone: `--method fm-ot --seed 0`.""",
    """Smaller is better for all of bits/dim, FID and NFE (dopri5 at 1e-5). Of one seed, ± is the standard error over
    the images; of several, the standard deviation over the seeds.""",
)
FIGURES = {
    "training": "FID and NFE during training",
    "fid": "FID against NFE, drawn",
    "error": "Error against NFE, drawn",
    "samples": "Samples of the midpoint method by NFE, from the same noises",
    "paths": "The way of one sample, from the same noise",
}
ERRORS = "RMSE of a pixel, in the model's units, from a solution of 1,000 evaluations and the same noise."
METHOD = (
    "## How it is measured",
    """The budget becomes a number of steps by a calibration on the machine, once for all methods; the seconds each
    really took stand in the table. AdamW at 1e-3, 5 % warm-up, then down to 0; averaged weights. DDPM, score matching
    (weight sigma²) and ScoreFlow (weight beta) are on the diffusion path, with an objective each; the network itself
    predicts noise or score, as in the paper's Appendix E.1 (divided by sigma, score matching would be DDPM).""",
)
JUDGE = """FID is in the features of {}. It is biased upwards for few images; read it beside that of the held-out ones.
    Likelihoods are of uniformly dequantized images, by dopri5 at 1e-5 with one Hutchinson probe."""
CLASSIFIER = """a classifier trained on the data itself, against all training images: comparable within this page, and
    with nothing outside it"""
