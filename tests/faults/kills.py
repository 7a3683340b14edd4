"""Kill a run at random instants, go on, and compare with the unbroken run bit for bit.

    python tests/faults/kills.py 100

Every second kill waits for a checkpoint to be half-written: its temporary file is there, or its manifest's. The others
come at random instants after the first step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
# Forked from a small server that has torch loaded: a process of its own, without seconds of imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "scipy.optimize", "fmkit.training"])


@dataclass
class Counts:
    """What was done: kills in all, those that left a half-written file, and runs finished and compared."""

    kills: int = 0
    in_a_write: int = 0
    runs: int = 0


def run(folder: Path, pace: str) -> None:
    """The run, in the process that is killed."""
    import program

    with (folder.parent / f"{folder.name}.err").open("ab") as said:
        os.dup2(said.fileno(), 2)
    program.main(folder, pace)


def start(folder: Path, pace: str = "slow") -> Any:
    """The run, in a process of its own."""
    process = PROCESSES.Process(target=run, args=(folder, pace))
    process.start()
    return process


def finish(folder: Path) -> None:
    """Let the run end.

    Raises:
        AssertionError: if it fails.
    """
    process = start(folder, "fast")
    process.join()
    assert process.exitcode == 0, (folder.parent / f"{folder.name}.err").read_text()


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((folder / "checkpoints").glob(".step_*")) or any(folder.glob(".checkpoints.json.*"))


def steps_done(folder: Path) -> int:
    """Of the newest checkpoint."""
    return max((int(f.stem[5:]) for f in (folder / "checkpoints").glob("step_*.safetensors")), default=-1)


def differences(whole: Path, cut: Path) -> list[str]:
    """Files in which two finished runs differ: weights, EMA, optimizer, sums, metrics lines, the flow."""
    names = ["metrics.jsonl", "flow.safetensors"]
    names += sorted(str(f.relative_to(whole)) for f in (whole / "checkpoints").iterdir())
    there = sorted(str(f.relative_to(cut)) for f in (cut / "checkpoints").iterdir())
    found = [] if there == names[2:] else [f"checkpoints: {there} for {names[2:]}"]
    found += [n for n in names if not (cut / n).is_file() or (whole / n).read_bytes() != (cut / n).read_bytes()]
    return found


def kill_once(folder: Path, wants_write: bool, rng: random.Random) -> tuple[bool, bool]:
    """Start the run and kill it: whether it was killed before it ended, and whether inside a write.

    Raises:
        AssertionError: if it fails by itself, or a checkpoint is lost.
    """
    kept = steps_done(folder)
    victim = start(folder)
    while steps_done(folder) <= max(kept, 0) and victim.is_alive():  # until it has taken steps of its own
        time.sleep(0.001)
    deadline = time.monotonic() + rng.uniform(0, 0.25)
    while victim.is_alive() and (time.monotonic() < deadline or (wants_write and not half_written(folder))):
        pass
    alive = victim.is_alive()
    victim.kill()
    victim.join()
    code = victim.exitcode
    assert code in (0, -signal.SIGKILL), (folder.parent / f"{folder.name}.err").read_text()
    assert steps_done(folder) >= kept, "a checkpoint is lost"
    return alive and code != 0, half_written(folder)


def campaign(place: Path, kills: int, seed: int = 0) -> Counts:
    """Kill `kills` times, over as many runs as that takes; every run is finished and compared.

    Raises:
        AssertionError: where a resumed run differs from the unbroken one.
    """
    rng, counts, whole = random.Random(seed), Counts(), place / "whole"
    finish(whole)
    while counts.kills < kills:
        folder = place / f"cut{counts.runs}"
        for _ in range(min(8, kills - counts.kills)):
            killed, inside = kill_once(folder, counts.kills % 2 == 0, rng)
            counts.kills += killed
            counts.in_a_write += killed and inside
            if not killed:
                break
        finish(folder)
        counts.runs += 1
        assert not differences(whole, folder), differences(whole, folder)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(vars(campaign(Path(scratch), asked.kills, asked.seed))))
