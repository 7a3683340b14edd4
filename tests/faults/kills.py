"""Kill a run at random instants, go on, and compare with the unbroken run bit for bit.

    python tests/faults/kills.py 100            # one process
    python tests/faults/kills.py 100 --ranks 2  # one of two, over gloo; the other has to notice

Every second kill waits for a checkpoint to be half-written: its temporary file is there, or its manifest's. The others
come at random instants after the first step. Of several processes the one that writes is killed, or else any.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import processes
from tests.faults import program

PATIENCE = 60.0  # seconds until the death of a process has to be noticed by the others


@dataclass
class Counts:
    """What was done: kills in all, those that left a half-written file, and runs finished and compared."""

    kills: int = 0
    in_a_write: int = 0
    runs: int = 0


def said_by(folder: Path, rank: str | int) -> Path:
    """What a rank wrote to standard error."""
    return folder.parent / f"{folder.name}.{rank}.err"


def start(folder: Path, pace: str = "slow", ranks: int = 1) -> list[BaseProcess]:
    """The run, in processes of its own, with torchrun's variables where there are several."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(ranks):
        environment = {}
        if ranks > 1:
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(processes.start(program.main, folder, pace, said=said_by(folder, rank), **environment))
    return started


def finish(folder: Path, ranks: int = 1) -> None:
    """Let the run end.

    Raises:
        AssertionError: if it fails.
    """
    for rank, process in enumerate(start(folder, "fast", ranks)):
        process.join()
        assert process.exitcode == 0, said_by(folder, rank).read_text()


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


def kill_once(folder: Path, wants_write: bool, rng: random.Random, ranks: int) -> tuple[bool, bool]:
    """Start the run and kill one process of it: whether it was killed before it ended, and whether inside a write.

    Raises:
        AssertionError: if it fails by itself, another process goes on without it, or a checkpoint is lost.
    """
    kept = steps_done(folder)
    started = start(folder, "slow", ranks)
    chosen = 0 if wants_write else rng.randrange(ranks)  # rank 0 alone writes
    victim, others = started[chosen], [p for rank, p in enumerate(started) if rank != chosen]
    while steps_done(folder) <= max(kept, 0) and victim.is_alive():  # until it has taken steps of its own
        time.sleep(0.001)
    deadline = time.monotonic() + rng.uniform(0, 0.25)
    while victim.is_alive() and (time.monotonic() < deadline or (wants_write and not half_written(folder))):
        pass
    alive = victim.is_alive()
    victim.kill()
    victim.join()
    inside = half_written(folder)
    for other in others:
        other.join(PATIENCE)
        assert not other.is_alive(), "a process does not notice that another has died"
    code = victim.exitcode
    assert code in (0, -signal.SIGKILL), said_by(folder, chosen).read_text()
    killed = alive and code != 0
    assert all(killed or other.exitcode == 0 for other in others), "a process failed though none was killed"
    assert steps_done(folder) >= kept, "a checkpoint is lost"
    return killed, inside


def campaign(place: Path, kills: int, seed: int = 0, ranks: int = 1) -> Counts:
    """Kill `kills` times, over as many runs as that takes; every run is finished and compared.

    Raises:
        AssertionError: where a resumed run differs from the unbroken one.
    """
    rng, counts, whole = random.Random(seed), Counts(), place / "whole"
    finish(whole, ranks)
    while counts.kills < kills:
        folder = place / f"cut{counts.runs}"
        for _ in range(min(8, kills - counts.kills)):
            killed, inside = kill_once(folder, counts.kills % 2 == 0, rng, ranks)
            counts.kills += killed
            counts.in_a_write += killed and inside
            if not killed:
                break
        finish(folder, ranks)
        counts.runs += 1
        assert not differences(whole, folder), differences(whole, folder)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(vars(campaign(Path(scratch), asked.kills, asked.seed, asked.ranks))))
