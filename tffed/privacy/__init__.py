"""Differential privacy: noise in four places, accounted for what was done, and attacked."""
