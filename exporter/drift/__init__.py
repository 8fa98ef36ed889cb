"""Drift: how far each layer of a file is from the same layer of a reference."""

from exporter.drift.job import drift_of

__all__ = ["drift_of"]
