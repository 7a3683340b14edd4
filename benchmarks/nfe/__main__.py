"""The command: measure, write the rows and the record, and from these the page and the pictures."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.nfe import measure, page, plot, problems, results

COMMAND = "python -m benchmarks.nfe"
SAMPLES, LEARNED_STEPS = 256, 2000
LEARNED = ("euler", "midpoint", "heun", "rk3", "rk4", "ab2", "ab3", "ab4", "abm3", "abm4", "dopri5")
QUICK_SOLVERS = ("euler", "midpoint", "ab3", "dopri5")
QUICK = measure.Ladder(shifts=(1.0, 0.5), budgets=(5, 10, 20, 50), uniform=(100,), tolerances=(1e-2, 1e-3, 1e-5))
QUICK_LEARNED = measure.Ladder(shifts=(1.0,), budgets=(5, 10, 20, 50), uniform=(), tolerances=(1e-5,))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Every ODE solver on exact fields: error against NFE.")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder to write into (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few solvers, samples and settings: seconds, for tests")
    parser.add_argument("--page", action="store_true", help="measure nothing: the page and the pictures from the rows")
    chosen = parser.parse_args(words)
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.page:
        run(chosen.out, chosen.quick)
    present(chosen.out)


def run(folder: Path, quick: bool) -> None:
    """Measure everything, and write `nfe.csv` and `nfe.json`."""
    began = time.process_time()
    samples, steps, tight = (8, 2, 1e-7) if quick else (SAMPLES, LEARNED_STEPS, problems.TIGHT)
    rows: list[results.Row] = []
    seen: list[dict[str, Any]] = []

    def go_on(there: problems.Problem, names: Sequence[str] | None, ladder: measure.Ladder) -> None:
        rows.extend(measure.measure(there, names, ladder))
        seen.append({key: getattr(there, key) for key in ("kind", "path", "data", "reference_error", "floor")})
        print(f"{there.kind} {there.path} {there.data}: {time.process_time() - began:.0f} s", flush=True)

    for there in problems.exact(samples, tight, ["ring"] if quick else problems.DATA):
        go_on(there, *((QUICK_SOLVERS, QUICK) if quick else (None, measure.Ladder())))
    for there in problems.learned(samples, steps, tight, ["condot"] if quick else problems.PATHS):
        go_on(there, *((QUICK_SOLVERS, QUICK_LEARNED) if quick else (LEARNED, measure.Ladder(uniform=()))))
    record = {
        "command": COMMAND + (" --quick" if quick else ""),
        "date": datetime.date.today().isoformat(),
        "minutes": (time.process_time() - began) / 60,
        "machine": f"{os.cpu_count()} CPU cores",
        "versions": {name: importlib.metadata.version(name) for name in ("fmkit", "torch", "torchdiffeq", "scipy")},
        "samples": samples,
        "learned_steps": steps,
        "tight": tight,
        "problems": seen,
    }
    results.write(rows, folder / "nfe.csv")
    (folder / "nfe.json").write_text(json.dumps(record, indent=1) + "\n")


def present(folder: Path) -> None:
    """Write `nfe.md` and the pictures from `nfe.csv` and `nfe.json`."""
    rows = results.read(folder / "nfe.csv")
    (folder / "nfe.md").write_text(page.page(rows, json.loads((folder / "nfe.json").read_text())))
    plot.draw(rows, folder)


if __name__ == "__main__":
    main()
