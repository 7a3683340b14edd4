"""The tables of the page, each a function of the rows: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.results import Row, Spread, spread
from benchmarks.peers.tables import duration, number, table, times

MATMUL, TORCHCFM = "matmul", "torchcfm"


def product_of(rows: Sequence[Row]) -> Row:
    """The plain product of matrices that was measured beside these rows of a section."""
    (product,) = (row for row in rows if row.contestant == MATMUL)
    return product


def rate(rows: Sequence[Row]) -> float:
    """Operations a second of the device on that product."""
    product = product_of(rows)
    return (product.figure or 0.0) / spread(product.seconds).median


def utilisation(row: Row, matrix_rate: float) -> Spread:
    """The share of that rate that the model's operations come to, over the windows."""
    done = (row.figure or 0.0) * (row.batch or 0)
    return spread(done / seconds / matrix_rate for seconds in row.seconds)


def faster(row: Row, rows: Sequence[Row]) -> Spread | None:
    """How many times faster than torchcfm's on the same work; None where that was not done."""
    others = [other for other in rows if other.work == row.work and other.contestant == TORCHCFM]
    if not others or row.contestant == TORCHCFM:
        return None
    return spread(b / a for a, b in zip(row.seconds, others[0].seconds, strict=True))


def networks(rows: Sequence[Row]) -> str:
    """Weights and operations of each network."""
    lines = [
        [row.case, row.contestant, f"{number((row.setting or 0) / 1e6)} M", f"{number((row.figure or 0) / 1e9)} G"]
        for row in rows
    ]
    return table(["network", "of", "weights", "operations"], lines, words=2)


def speeds(rows: Sequence[Row], what: str) -> str:
    """Images a second of every contestant, and what share of the device's matrix rate that is."""
    found, lines = rate(rows), []
    for row in rows:
        if row.contestant == MATMUL:
            continue
        seconds, ratio = spread(row.seconds), faster(row, rows)
        images = number((row.batch or 0) / seconds.median)
        cells = [row.case, row.contestant, str(row.batch), duration(seconds.median), images]
        share = utilisation(row, found).median
        lines.append([*cells, f"{100 * share:.1f} %", "" if ratio is None else times(ratio)])
    said = f"The matrix rate beside these: {number(found / 1e12)} T operations a second, in {product_of(rows).case}."
    head = ["network", "contestant", "batch", what, "images a second", "of the matrix rate", "torchcfm is slower by"]
    return f"{said}\n\n{table(head, lines, words=2)}"
