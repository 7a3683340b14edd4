"""Objectives: what a network regresses on, and at which times."""

from fmkit.objectives.base import Batch, Loss, Objective
from fmkit.objectives.regression import (
    DataPrediction,
    NoisePrediction,
    Regression,
    ScoreFlow,
    ScoreMatching,
    VelocityMatching,
)
from fmkit.objectives.times import LogitNormal, TimeSampler, UniformTime, UShaped

__all__ = [
    "Batch",
    "DataPrediction",
    "LogitNormal",
    "Loss",
    "NoisePrediction",
    "Objective",
    "Regression",
    "ScoreFlow",
    "ScoreMatching",
    "TimeSampler",
    "UShaped",
    "UniformTime",
    "VelocityMatching",
]
