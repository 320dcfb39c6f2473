"""Thresholds of known optimizers, one file a family; `optbench.dynamics.dispatch` loads them all."""
