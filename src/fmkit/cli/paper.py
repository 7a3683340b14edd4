"""`fmkit bench paper`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmkit.arguments import check_count
from fmkit.errors import ConfigError

if TYPE_CHECKING:
    from fmkit.benches.paper_protocol import Protocol

PAGE, RESULTS = "paper.md", "paper.json"


def run_cells(
    protocol: Protocol,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    out: Path,
    page: Path | None,
    only_table: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Measure the cells asked for that are not there yet; every result in the folder."""
    from fmkit.benches.paper import Bench, load_results
    from fmkit.benches.paper_protocol import METHODS, check_method
    from fmkit.config import parsed

    cells = list(dict.fromkeys(itertools.product(seeds or (0,), methods or METHODS)))
    for seed, method in cells:  # all of them before the first, which may take long
        check_method(method)
        check_count("seed", seed, least=0)
    if page is not None and not page.is_dir():
        raise ConfigError(f"there is no folder {page}", "--page")
    if only_table:
        if not out.is_dir():
            raise ConfigError(f"there is no folder {out}", "--out")
        return load_results(out)
    from fmkit.image_evaluation import feature_extractor, labelled_images

    split = labelled_images(parsed(protocol.data, "--data"))  # before the folder is made
    if protocol.features is not None:
        feature_extractor(parsed(protocol.features, "--features"), split, "--features")
    bench = Bench(out, protocol, tell=None if quiet else _tell)
    for i, (seed, method) in enumerate(cells, 1):
        if not quiet:
            print(f"[{i}/{len(cells)}] {method}, {protocol.label}, seed {seed}", file=sys.stderr)
        bench.cell(method, seed)
    return bench.results()


def _tell(text: str) -> None:
    print(f"  {datetime.now():%H:%M:%S} {text}", file=sys.stderr)


def write_page(results: list[dict[str, Any]], strips: Path, folder: Path) -> None:
    """The page of the documentation, its figures, and the results that it is made of; `strips` has the cells'."""
    from fmkit.benches.paper_figures import draw
    from fmkit.benches.paper_table import page
    from fmkit.saving import write_bytes

    page(results)  # whatever is wrong with the results, before anything is written
    text = page(results, draw(results, strips, folder))
    write_bytes(folder / RESULTS, json.dumps(results, indent=1).encode() + b"\n")
    write_bytes(folder / PAGE, text.encode())


def show(results: list[dict[str, Any]]) -> None:
    """The table, for people."""
    from rich.console import Console
    from rich.table import Table

    from fmkit.benches.paper_table import HEAD, caption, lines

    console = Console()
    console.print(caption(results), highlight=False)
    table = Table(*HEAD, box=None, padding=(0, 1), pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right" if column.header else "left", True
    for line in lines(results):
        table.add_row(*(cell.replace(" ± ", "±") for cell in line))
    console.print("", table)
