"""The command: measure, write the rows and the record, and from these the page."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import packages, page, results
from benchmarks.peers.results import Note, Row
from benchmarks.peers.sections import BY_NAME, SECTIONS, Section

COMMAND = "python -m benchmarks.peers"
REPEATS, QUICK_REPEATS = 21, 2
VERSIONS = ("fmkit", *packages.PEERS, "POT", "torchdiffeq", "scipy", "numpy")


def main(words: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if words is None else words)
    chosen = _parser().parse_args(words)
    if chosen.page:
        present(chosen.out)
    elif chosen.here or (packages.present() and not chosen.python and not chosen.make):
        run(chosen.out, chosen.section or list(BY_NAME), chosen.repeats, chosen.quick, packages.load())
        present(chosen.out)
    else:
        python = chosen.python or (packages.make() if chosen.make else packages.ENVIRONMENT / "bin" / "python")
        if not python.exists():
            raise SystemExit(f"no peers here, nor in {packages.ENVIRONMENT}: --make makes that environment")
        packages.hand_over(python, words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="fmkit and its peers on the same work in the same run.")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder to write into (%(default)s)")
    parser.add_argument("--section", action="append", choices=list(BY_NAME), help="only this one; may be repeated")
    parser.add_argument("--repeats", type=int, default=None, help=f"turns of every contest ({REPEATS})")
    parser.add_argument("--quick", action="store_true", help="the least that runs everything, whose figures say little")
    parser.add_argument("--page", action="store_true", help="measure nothing: the page from the rows")
    parser.add_argument("--make", action="store_true", help="make the peers' environment in build/peers if need be")
    parser.add_argument("--python", type=Path, default=None, help="the Python of another environment with the peers")
    parser.add_argument("--here", action="store_true", help="measure in this environment")
    return parser


def run(folder: Path, names: Sequence[str], repeats: int | None, quick: bool, peers: Mapping[str, Any]) -> None:
    """Measure sections, and write `peers.csv` and `peers.json`; what other sections measured before stays."""
    folder.mkdir(parents=True, exist_ok=True)
    table, file = folder / "peers.csv", folder / "peers.json"
    rows = results.read(table) if table.exists() else []
    runs = json.loads(file.read_text())["sections"] if file.exists() else {}
    repeats = repeats or (QUICK_REPEATS if quick else REPEATS)
    for section in (s for s in SECTIONS if s.name in names):
        found, runs[section.name] = measure(section, repeats, quick, peers)
        rows = [row for row in rows if row.section != section.name] + found
        order = {s.name: i for i, s in enumerate(SECTIONS)}
        results.write(sorted(rows, key=lambda row: order[row.section]), table)
        sections = {name: runs[name] for name in order if name in runs}
        file.write_text(json.dumps({"command": COMMAND, "sections": sections}, indent=1) + "\n")
        print(f"{section.name}: {runs[section.name]['minutes']:.1f} minutes", flush=True)


def measure(section: Section, repeats: int, quick: bool, peers: Mapping[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a section, and under what conditions they came to be."""
    import torch

    began, load = time.perf_counter(), os.getloadavg()[0]
    found = list(section.run(peers, repeats, quick))
    conditions = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "repeats": repeats,
        "quick": quick,
        "minutes": (time.perf_counter() - began) / 60,
        "load": [load, os.getloadavg()[0]],
        "threads": torch.get_num_threads(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "torch": f"{torch.__version__} (git {torch.version.git_version[:10]})",
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "notes": [note.text for note in found if isinstance(note, Note)],
    }
    return [row for row in found if isinstance(row, Row)], conditions


def present(folder: Path) -> None:
    """Write `peers.md` from `peers.csv` and `peers.json`."""
    rows, record = results.read(folder / "peers.csv"), json.loads((folder / "peers.json").read_text())
    (folder / "peers.md").write_text(page.page(rows, record))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """Which state of the repository was measured; empty outside of one."""
    ask = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(ask, cwd=packages.ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    """The processor's name, as Linux knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    main()
