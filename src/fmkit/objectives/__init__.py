"""Objectives: what a network regresses on, and at which times."""

from fmkit.objectives.base import Batch, Loss, Objective, Question
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
    "Question",
    "Regression",
    "ScoreFlow",
    "ScoreMatching",
    "TimeSampler",
    "UShaped",
    "UniformTime",
    "VelocityMatching",
]
