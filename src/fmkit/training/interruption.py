"""Leaving on Ctrl-C and SIGTERM with everything saved."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from fmkit.training.engine import Engine

if TYPE_CHECKING:
    from fmkit.training.state import Run

# What a shell reports of a process that SIGTERM ended.
TERMINATED = 143


class Interruption:
    """Listens for Ctrl-C and SIGTERM: the first one ends the run after the step under way, the second at once.

    Only the main thread can listen; elsewhere, and under another handler than Python's own, signals do what they did.

    Attributes:
        signal: the one that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin to."""
        if threading.current_thread() is not threading.main_thread():
            return
        own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in own.items():
            if signal.getsignal(number) == handler:
                self._before[number] = signal.signal(number, self._heard)

    def restore(self) -> None:
        """Put back the handlers there were."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # impatient
            self._end(number)
        self.signal = number

    def heard(self, engine: Engine, device: torch.device) -> bool:
        """Whether this process or another was told to stop: all leave after the same step."""
        if engine.ranks > 1:
            listed = (signal.SIGTERM, signal.SIGINT)
            told = engine.count([float(self.signal == number) for number in listed], device)
            self.signal = next((int(n) for n, count in zip(listed, told, strict=True) if count), 0)
        return bool(self.signal)

    def leave(self, run: Run) -> None:
        """Save the run, say so, and end it.

        Raises:
            KeyboardInterrupt: for Ctrl-C.
            SystemExit: with code 143, for SIGTERM.
        """
        run.check_weights()
        run.checkpoint()
        name = signal.Signals(self.signal).name
        kept = f"saved in {run.folder}; resume to go on" if run.folder else "nothing is saved: there is no run folder"
        if run.engine.main:
            print(f"\n{name} after step {run.step} of {run.steps}: {kept}", file=sys.stderr, flush=True)
        self._end(self.signal)

    @staticmethod
    def _end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)
