"""Fields: networks, and the velocities made of them."""

from fmkit.fields.base import (
    Dropped,
    ModuleField,
    PredictionField,
    Stochastic,
    VectorField,
    as_field,
    ask,
    network_of,
    predict,
)
from fmkit.fields.dit import DiT
from fmkit.fields.guidance import Autoguidance, CFGZeroStar, ClassifierFree, Guidance, GuidanceInterval
from fmkit.fields.mlp import MLP
from fmkit.fields.rescheduling import Rescheduled
from fmkit.fields.unet import UNet

__all__ = [
    "MLP",
    "Autoguidance",
    "CFGZeroStar",
    "ClassifierFree",
    "DiT",
    "Dropped",
    "Guidance",
    "GuidanceInterval",
    "ModuleField",
    "PredictionField",
    "Rescheduled",
    "Stochastic",
    "UNet",
    "VectorField",
    "as_field",
    "ask",
    "network_of",
    "predict",
]
