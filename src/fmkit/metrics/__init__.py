"""Metrics: samples in, numbers out."""
