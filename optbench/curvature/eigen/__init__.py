"""Largest eigenvalues of an operator, with error bounds, and what keeps following them honest."""
