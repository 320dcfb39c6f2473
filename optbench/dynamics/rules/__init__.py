"""Thresholds of known optimizers, one file a family; `dynamics.dispatch` loads every file."""
