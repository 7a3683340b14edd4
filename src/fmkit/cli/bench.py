"""`fmkit bench`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmkit.errors import ConfigError

if TYPE_CHECKING:
    from fmkit.benches.protocol import Row

PAGE, RESULTS = "transport2d.md", "transport2d.json"


def run_cells(
    rows: Sequence[str] | None,
    data: Sequence[str] | None,
    seeds: Sequence[int] | None,
    steps: int,
    points: int,
    out: Path,
    page: Path | None,
    only_table: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Measure the cells asked for that are not there yet; every result in the folder."""
    from fmkit.benches.protocol import DATA, ROWS, SEEDS, Protocol, check_cell
    from fmkit.benches.transport2d import Bench
    from fmkit.training import Progress

    own = dict(_own(word) for word in rows or () if "=" in word)
    names = [word.partition("=")[0] for word in rows or ROWS]
    # Seeds outermost: a table that is stopped early has every row.
    cells = list(dict.fromkeys(itertools.product(seeds or SEEDS, data or DATA, names)))
    for seed, name, row in cells:  # all of them before the first, which may take an hour
        check_cell(row, name, seed, {**own, **ROWS})
    if only_table and not out.is_dir():
        raise ConfigError(f"there is no folder {out}", "--out")
    if page is not None and not page.is_dir():
        raise ConfigError(f"there is no folder {page}", "--page")
    bench = Bench(out, Protocol(steps, points), tuple if quiet else lambda: [Progress()], own)
    for i, (seed, name, row) in enumerate(() if only_table else cells, 1):
        if not quiet:
            print(f"[{i}/{len(cells)}] {row}, {name}, seed {seed}", file=sys.stderr)
        bench.cell(row, name, seed)
    return bench.results()


def _own(word: str) -> tuple[str, Row]:
    """A row of the user's: NAME={path: ..., coupling: ...}."""
    from fmkit.benches.protocol import ROWS, Row
    from fmkit.config import parsed

    name, _, text = word.partition("=")
    values = parsed(text, "--row")
    if name in ROWS:
        raise ConfigError(f"{name!r} is a row of the table; call yours otherwise", "--row")
    if not isinstance(values, dict) or not {*values} <= {"path", "coupling"}:
        raise ConfigError(f"got {word!r}, expected NAME={{path: ..., coupling: ...}}, or a row of the table", "--row")
    return name, Row(name, **values)


def write_page(results: list[dict[str, Any]], folder: Path) -> None:
    """The page of the documentation, and the results that it is made of."""
    from fmkit.benches.table import page
    from fmkit.saving import write_bytes

    text = page(results)
    write_bytes(folder / RESULTS, json.dumps(results, indent=1).encode() + b"\n")
    write_bytes(folder / PAGE, text.encode())


def show(results: list[dict[str, Any]]) -> None:
    """The tables, for people."""
    from rich.console import Console
    from rich.table import Table

    from fmkit.benches.table import HEAD, caption, lines, protocol_of, titles

    console = Console()
    console.print(caption(protocol_of(results)), highlight=False)
    for data, title in titles(results).items():
        table = Table(*HEAD, title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        for column in table.columns:
            column.justify, column.no_wrap = "right" if column.header else "left", True
        for line in lines(results, data):
            table.add_row(*(cell.replace(" ± ", "±") for cell in line.cells))  # so that it fits 80 columns
        console.print("", table)
