"""Callbacks: what happens beside the loop. They are told, and never change the run."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fmkit.arguments import check_count
from fmkit.errors import ArgumentError, CombinationError
from fmkit.parts import Part
from fmkit.randomness import stream
from fmkit.solvers import Solver

if TYPE_CHECKING:
    from fmkit.training.state import Run


class Callback(Part):
    """The base class of every callback. A subclass implements what it wants to hear of."""

    group: ClassVar[str] = "fmkit.callbacks"

    def on_start(self, run: Run) -> None:
        """Before the first step (again after a resume)."""

    def on_prepare(self, run: Run, done: float) -> None:
        """While a coupling is fitted before the first step; `done` rises from 0 to 1."""

    def on_step(self, run: Run) -> None:
        """After every step."""

    def on_log(self, run: Run, record: dict[str, Any]) -> None:
        """With every line of metrics."""

    def on_telemetry(self, run: Run, line: dict[str, Any]) -> None:
        """With every line of telemetry, where the callback `telemetry` takes it."""

    def on_end(self, run: Run) -> None:
        """After the last step, and also when the run fails or is interrupted."""


class Progress(Callback):
    """A live bar on a terminal; elsewhere a line every few seconds. Both go to standard error.

    Args:
        every: seconds between two lines where there is no terminal.
    """

    def __init__(self, every: float = 10.0) -> None:
        super().__init__()
        if not every > 0:
            raise ArgumentError(f"every is {every}, expected seconds > 0")
        self.every = every
        self._bar: Any = None
        self._told = -math.inf

    def on_prepare(self, run: Run, done: float) -> None:
        terminal = sys.stderr.isatty()
        if done < 1 and time.monotonic() - self._told < (0.2 if terminal else self.every):
            return
        self._told = time.monotonic()
        line = f"fitting the coupling: {done:.0%}"
        print(f"\r{line}" if terminal else line, end="" if terminal and done < 1 else "\n", file=sys.stderr, flush=True)

    def on_start(self, run: Run) -> None:
        self._loss, self._above = "", "above the least possible"
        self._last = self._began = time.monotonic()
        self._first = run.step
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("training", total=run.steps, completed=run.step, loss="")

    def on_step(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=run.step, loss=self._loss)
        elif time.monotonic() - self._last > self.every:
            self._last = time.monotonic()
            pace = (run.step - self._first) / (self._last - self._began)
            print(f"step {run.step}/{run.steps}  {pace:.0f} steps/s  {self._loss}", file=sys.stderr, flush=True)

    def on_log(self, run: Run, record: dict[str, Any]) -> None:
        if "loss_floor_points" in record:
            self._above = "above learning the samples by heart"
        if "loss" in record:
            self._loss = f"loss {record['loss']:.4f}"
            if "loss_excess" in record:
                self._loss += f", {record['loss_excess']:.4f} {self._above}"

    def on_end(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TensorBoard(Callback):
    """Every line of metrics and of telemetry as TensorBoard scalars (the extra `fmkit[tensorboard]`).

    Args:
        folder: where; by default `tensorboard` in the run folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self._writer: Any = None

    def on_start(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                "the callback 'tensorboard' needs TensorBoard: pip install 'fmkit[tensorboard]'"
            ) from error
        folder = self.folder or (run.folder / "tensorboard" if run.folder else None)
        if folder is None:
            raise ArgumentError("the callback 'tensorboard' needs a folder: give it one, or fit one a run folder")
        self._writer = SummaryWriter(str(folder), purge_step=run.step)

    def on_log(self, run: Run, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def on_telemetry(self, run: Run, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(f"telemetry/{name}", value, line["step"])

    def on_end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Telemetry(Callback):
    """Speed and memory, a line with each line of the loss, in `telemetry.jsonl` of the run folder, and to callbacks.

    It has a clock in it, so no two runs have the same, and it is kept apart from the metrics, which they do. A line:
    `step`; `seconds` of training up to there, those of a run that was resumed included; `steps_per_second` and
    `samples_per_second` since the line before; `memory`, in bytes, the most there was: of the device on a GPU, else of
    the process.
    """

    def on_start(self, run: Run) -> None:
        self._path = None if run.folder is None else run.folder / "telemetry.jsonl"
        self._seconds, self._step, self._last = 0.0, run.step, time.monotonic()
        if self._path is not None:
            kept = [line for line in _lines(self._path) if line["step"] <= run.step]  # the run may go back
            self._seconds = kept[-1]["seconds"] if kept else 0.0
            self._write("w", *kept)

    def on_log(self, run: Run, record: dict[str, Any]) -> None:
        if "lr" not in record:
            return
        now = time.monotonic()
        passed, steps = now - self._last, run.step - self._step
        self._seconds, self._step, self._last = self._seconds + passed, run.step, now
        pace = steps / max(passed, 1e-9)
        line: dict[str, Any] = {
            "step": run.step,
            "seconds": round(self._seconds, 3),
            "steps_per_second": round(pace, 3),
        }
        line |= {"samples_per_second": round(pace * run.settings.batch_size, 1), "memory": _memory(run)}
        self._write("a", line)
        for callback in run.callbacks:
            callback.on_telemetry(run, line)

    def _write(self, mode: str, *lines: dict[str, Any]) -> None:
        """What cannot be written is left out: the run is worth more."""
        if self._path is None:
            return
        try:
            with open(self._path, mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            warnings.warn(f"no telemetry: {self._path} cannot be written: {error.strerror}", UserWarning, stacklevel=2)
            self._path = None


class NFE(Callback):
    """How many evaluations the flow of the averaged weights takes to sample, in the metrics as `nfe`.

    The mean over samples where each has a step size of its own. The noise is the same every time, and the run's own
    random numbers are left alone.

    Args:
        every: steps between two measurements.
        n: samples.
        solver: by default the run's.

    Raises:
        CombinationError: at the start of a run whose network is kept in parts.
    """

    def __init__(self, every: int = 500, n: int = 64, solver: Solver | None = None) -> None:
        super().__init__()
        self.every, self.n, self.solver = check_count("every", every), check_count("n", n), solver

    def on_start(self, run: Run) -> None:
        if run.in_parts:
            raise CombinationError("the callback 'nfe' needs the whole network in one process, and it is kept in parts")

    def on_step(self, run: Run) -> None:
        if run.step % self.every and run.step != run.steps:
            return
        flow, cond = run.flow(self.n)
        solution = flow.trajectory(self.n, cond=cond, solver=self.solver, generator=stream(run.settings.seed, "nfe"))
        run.note({"step": run.step, "nfe": solution.nfe.double().mean().item()})


def _lines(path: Path) -> list[dict[str, Any]]:
    """Of a file of telemetry; what is no line of it, as one that was cut off, is dropped."""
    found = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                check_count("step", line["step"], least=0), float(line["seconds"])
                found.append(line)
    except (OSError, UnicodeDecodeError):
        return []
    return found


def _memory(run: Run) -> int | None:
    if run.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
