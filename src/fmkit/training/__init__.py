"""Training: the trainer, its settings, and callbacks."""

from fmkit.randomness import stream
from fmkit.training.callbacks import NFE, Callback, Progress, Telemetry, TensorBoard
from fmkit.training.distributed import DDP, FSDP
from fmkit.training.engine import Engine, Single, engine_of_environment
from fmkit.training.floors import LossFloor
from fmkit.training.settings import Settings
from fmkit.training.snapshots import Snapshots
from fmkit.training.state import Run
from fmkit.training.trainer import Trainer

__all__ = [
    "DDP",
    "FSDP",
    "NFE",
    "Callback",
    "Engine",
    "LossFloor",
    "Progress",
    "Run",
    "Settings",
    "Single",
    "Snapshots",
    "Telemetry",
    "TensorBoard",
    "Trainer",
    "engine_of_environment",
    "stream",
]
