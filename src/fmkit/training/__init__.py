"""Training: the trainer, its settings, and callbacks."""

from fmkit.randomness import stream
from fmkit.training.callbacks import Callback, Progress, TensorBoard
from fmkit.training.floors import LossFloor
from fmkit.training.settings import Settings
from fmkit.training.state import Run
from fmkit.training.trainer import Trainer

__all__ = ["Callback", "LossFloor", "Progress", "Run", "Settings", "TensorBoard", "Trainer", "stream"]
