"""Engines: where the functions of an algorithm run."""
