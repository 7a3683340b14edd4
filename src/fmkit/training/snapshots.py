"""What the flow draws while it is trained: a few samples at a few moments, in the run folder, for its page."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from fmkit.arguments import check_count
from fmkit.errors import FmkitError, SavedFileError
from fmkit.randomness import stream
from fmkit.saving import FORMAT, write_tensors
from fmkit.solvers import Midpoint, Solver
from fmkit.training.callbacks import Callback

if TYPE_CHECKING:
    from fmkit.training.state import Run

FOLDER = "samples"
POINTS, PICTURES = 400, 16  # samples of few numbers, and of many
FEW = 3


class Snapshots(Callback):
    """Samples of the averaged weights over training, as `samples/step_00000500.safetensors` in the run folder.

    From the same noise and conditions every time, in the data's units. The run itself is the same with and without:
    the draws are its own. Nothing is kept of a run without a folder, or whose network is kept in parts.

    Args:
        times: how many, at equal distances, the last after the last step.
        n: samples each time; 400 of at most three numbers, 16 of larger ones by default.
        solver: by default ten steps of the midpoint method, or the run's own where points are not Euclidean.

    Raises:
        ArgumentError: for a count below 1.
    """

    def __init__(self, times: int = 6, n: int | None = None, solver: Solver | None = None) -> None:
        super().__init__()
        self.times, self.solver = check_count("times", times), solver
        self.n = None if n is None else check_count("n", n)

    def on_start(self, run: Run) -> None:
        kept = run.folder is not None and not run.in_parts
        self._due = {round(run.steps * k / self.times) for k in range(1, self.times + 1)} if kept else set()

    def on_step(self, run: Run) -> None:
        if run.step not in self._due:
            return
        try:
            self._draw(run)
        except SavedFileError as error:
            warnings.warn(f"no samples of step {run.step}: {error}", UserWarning, stacklevel=2)
        except FmkitError:  # an early flow need not be one that can be integrated
            return

    def _draw(self, run: Run) -> None:
        flow, cond = run.flow(self.n or POINTS)
        n = self.n or (POINTS if math.prod(flow.event_shape) <= FEW else PICTURES)
        solver = self.solver or (Midpoint(10) if run.parts["path"].euclidean else None)
        generator = stream(run.settings.seed, "snapshots")
        x = flow.sample(n, cond=None if cond is None else cond[:n], solver=solver, generator=generator)
        assert run.folder is not None  # on_start looked
        folder = run.folder / FOLDER
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SavedFileError(f"cannot make {folder}: {error.strerror}") from error
        header = {"format": FORMAT, "kind": "samples", "step": run.step}
        write_tensors(folder / f"step_{run.step:08}.safetensors", {"x": x}, header)
