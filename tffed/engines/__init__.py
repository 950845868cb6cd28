"""Engines: where the functions of an algorithm run."""

from tffed.engines.embedded import Embedded

__all__ = ["Embedded"]
