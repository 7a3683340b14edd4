"""What a package asks of its user: seconds to import, and what is installed for it besides torch.

Import times are of fresh processes, in turns. Sizes are of the packages that pip chooses for it, one by one from their
wheels, without those that torch needs anyway.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.peers.contest import turns
from benchmarks.peers.packages import PEERS, ROOT
from benchmarks.peers.results import Note, Row

IMPORT, SIZE, ALONE = "import", "with what it needs", "alone"
SECTION = "footprint"
MEGABYTE = 1e6
# What training and sampling in the other sections import.
STATEMENTS = {
    "torch": "import torch",
    "fmkit": "from fmkit import Flow, Trainer, paths",
    "torchcfm": "from torchcfm.conditional_flow_matching import ConditionalFlowMatcher",
    "flow_matching": "from flow_matching.path import AffineProbPath\nfrom flow_matching.solver import ODESolver",
    "torchebm": "from torchebm.interpolants import LinearInterpolant\nfrom torchebm.samplers import FlowSampler",
}
SOURCES = {"fmkit": str(ROOT), **{name: name for name in PEERS}}  # as pip is told of them
CLOCK = "import time\nbegan = time.perf_counter()\n{}\nprint(time.perf_counter() - began)"

Sizes = Callable[[str], tuple[float, float, int]]  # source -> bytes alone, with all it needs, number of these


def rows(
    statements: Mapping[str, str], sources: Mapping[str, str], sizes: Sizes, *, repeats: int
) -> Iterator[Row | Note]:
    """Seconds of the imports; the size in MB, alone and with what it needs, whose number of packages is the setting."""
    work = {name: partial(import_time, statement) for name, statement in statements.items()}
    for name, seconds in turns(work, repeats, at_least=0.0).items():
        yield Row(SECTION, name, IMPORT, seconds=seconds)
    for name, source in sources.items():
        try:
            alone, whole, packages = sizes(source)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            yield Note(SECTION, f"The size of {name} is not known: {error}")
            continue
        yield Row(SECTION, name, ALONE, figure=alone / MEGABYTE)
        yield Row(SECTION, name, SIZE, setting=float(packages), figure=whole / MEGABYTE)


def import_time(statement: str) -> float:
    """Seconds that a fresh interpreter takes to import."""
    done = subprocess.run([sys.executable, "-c", CLOCK.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def installed(source: str) -> tuple[float, float, int]:
    """Bytes of a package alone, of all that pip installs for it besides torch and what torch needs, and their number.

    Raises:
        CalledProcessError: if pip cannot find or install something.
    """
    torch = chosen("torch")
    needed = {name: pin for name, pin in chosen(source).items() if name not in torch}
    with tempfile.TemporaryDirectory() as folder:
        alone, whole = Path(folder, "alone"), Path(folder, "whole")
        pip("install", "--no-deps", "--target", str(alone), source)
        pins = [pin for pin in needed.values() if pin is not None]
        if pins:
            pip("install", "--no-deps", "--target", str(whole), *pins)
        own = size(alone)
        return own, own + size(whole), len(needed)


@functools.cache
def chosen(source: str) -> dict[str, str | None]:
    """What pip would install for a package in an empty environment: pins by name, None for the package itself."""
    report = json.loads(pip("install", "--dry-run", "--ignore-installed", "--report", "-", source))
    return {
        re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): None
        if item["requested"]
        else f"{item['metadata']['name']}=={item['metadata']['version']}"
        for item in report["install"]
    }


def pip(*words: str) -> str:
    """What pip says on standard output."""
    command = [sys.executable, "-m", "pip", words[0], "--quiet", *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def size(folder: Path) -> float:
    """Bytes of the files below a folder, without compiled ones that Python writes by itself."""
    return float(
        sum(
            os.path.getsize(Path(place, file))
            for place, _, files in os.walk(folder)
            for file in files
            if not file.endswith(".pyc")
        )
    )
