"""Callbacks: what happens beside the loop. They are told, and never change the run."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

from fmkit.errors import ArgumentError
from fmkit.parts import Part

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
    """Every line of metrics as TensorBoard scalars (the extra `fmkit[tensorboard]`).

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

    def on_end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
