"""Processes that share the examples of one run: each takes a part of them, and sums are added up.

Every process holds all data and all weights, draws the same random numbers and makes every decision
for itself, from numbers that are the same in all. So whatever does not ask `Ranks` is computed by
each as one process alone would, and is right, though no faster.
"""

from optbench.ranks.alone import ALONE, Ranks

__all__ = ["ALONE", "Ranks"]
