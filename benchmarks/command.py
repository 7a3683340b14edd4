"""A benchmark beside the peers as a command: measure, write the rows and the record, and from these the page."""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import packages, results
from benchmarks.peers.results import Note, Row
from benchmarks.peers.sections import Section

VERSIONS = ("fmkit", *packages.PEERS, "POT", "torchdiffeq", "scipy", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """A command `python -m benchmarks.NAME`, which writes `NAME.csv`, `NAME.json` and `NAME.md`.

    Attributes:
        name: of the module and its files.
        description: what `--help` says.
        sections: what it measures.
        page: the page, from rows and record.
        repeats: turns of every contest.
        quick: turns with `--quick`.
    """

    name: str
    description: str
    sections: Sequence[Section]
    page: Callable[[Sequence[Row], dict[str, Any]], str]
    repeats: int
    quick: int

    @property
    def command(self) -> str:
        """As it is called."""
        return f"python -m {self.module}"

    @property
    def module(self) -> str:
        """Where it lives."""
        return f"benchmarks.{self.name}"

    def main(self, words: Sequence[str] | None = None) -> None:
        """Do what the words of the command line say.

        Raises:
            SystemExit: for words that it does not know, or without the peers.
        """
        words = list(sys.argv[1:] if words is None else words)
        chosen = self._parser().parse_args(words)
        if chosen.page:
            self.present(chosen.out)
        elif chosen.here or (packages.present() and not chosen.python and not chosen.make):
            names = chosen.section or [section.name for section in self.sections]
            self.run(chosen.out, names, chosen.repeats, chosen.quick, packages.load())
            self.present(chosen.out)
        else:
            python = chosen.python or (packages.make() if chosen.make else packages.ENVIRONMENT / "bin" / "python")
            if not python.exists():
                raise SystemExit(f"no peers here, nor in {packages.ENVIRONMENT}: --make makes that environment")
            packages.hand_over(python, self.module, words)

    def _parser(self) -> argparse.ArgumentParser:
        names = [section.name for section in self.sections]
        parser = argparse.ArgumentParser(prog=self.command, description=self.description)
        folder = Path("docs/benchmarks")
        parser.add_argument("--out", type=Path, default=folder, help="folder to write into (%(default)s)")
        parser.add_argument("--section", action="append", choices=names, help="only this one; may be repeated")
        parser.add_argument("--repeats", type=int, default=None, help=f"turns of every contest ({self.repeats})")
        parser.add_argument("--quick", action="store_true", help="the least that runs everything, of no worth")
        parser.add_argument("--page", action="store_true", help="measure nothing: the page from the rows")
        parser.add_argument("--make", action="store_true", help="make the peers' environment in build/peers if need be")
        parser.add_argument("--python", type=Path, default=None, help="the Python of an environment with the peers")
        parser.add_argument("--here", action="store_true", help="measure in this environment")
        return parser

    def run(
        self, folder: Path, names: Sequence[str], repeats: int | None, quick: bool, peers: Mapping[str, Any]
    ) -> None:
        """Measure sections, and write rows and record; what other sections measured before stays.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when what there was of the section is written, with a note; not the page,
                which may have no sense of a part (`--page` tries).
        """
        folder.mkdir(parents=True, exist_ok=True)
        table, file = folder / f"{self.name}.csv", folder / f"{self.name}.json"
        rows = results.read(table) if table.exists() else []
        runs = json.loads(file.read_text())["sections"] if file.exists() else {}
        repeats = repeats or (self.quick if quick else self.repeats)
        order = {section.name: i for i, section in enumerate(self.sections)}
        for section in (s for s in self.sections if s.name in names):
            found, runs[section.name], stopped = measure(section, repeats, quick, peers)
            rows = [row for row in rows if row.section != section.name] + found
            results.write(sorted(rows, key=lambda row: order[row.section]), table)
            sections = {name: runs[name] for name in order if name in runs}
            file.write_text(json.dumps({"command": self.command, "sections": sections}, indent=1) + "\n")
            print(f"{section.name}: {runs[section.name]['minutes']:.1f} minutes", flush=True)
            if stopped:
                raise KeyboardInterrupt

    def present(self, folder: Path) -> None:
        """Write the page from the rows and the record."""
        record = json.loads((folder / f"{self.name}.json").read_text())
        (folder / f"{self.name}.md").write_text(self.page(results.read(folder / f"{self.name}.csv"), record))


def measure(
    section: Section, repeats: int, quick: bool, peers: Mapping[str, Any]
) -> tuple[list[Row], dict[str, Any], bool]:
    """The rows of a section, under what conditions they came to be, and whether it was stopped by Ctrl-C."""
    import torch

    began, load = time.perf_counter(), os.getloadavg()[0]
    found: list[Row | Note] = []
    stopped = False
    try:
        for row in section.run(peers, repeats, quick):
            found.append(row)
            print(f"  {section.name}: {said(row)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if not found:
            raise
        stopped = True
        found.append(Note(section.name, "Stopped by hand: the rest of the section is not in this record."))
    conditions = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "repeats": repeats,
        "quick": quick,
        "minutes": (time.perf_counter() - began) / 60,
        "load": [load, os.getloadavg()[0]],
        "threads": torch.get_num_threads(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "device": _device(),
        "torch": f"{torch.__version__} (git {torch.version.git_version[:10]})",
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "notes": [note.text for note in found if isinstance(note, Note)],
    }
    return [row for row in found if isinstance(row, Row)], conditions, stopped


def said(row: Row | Note) -> str:
    """A row as it comes, for whoever waits."""
    if isinstance(row, Note):
        return row.text
    seconds = f", {results.spread(row.seconds).median:.3g} s" if row.seconds else ""
    return f"{row.contestant}, {row.case}{seconds}"


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


def _device() -> str:
    """The GPU's name, where there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
