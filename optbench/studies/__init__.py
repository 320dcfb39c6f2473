"""Studies: many runs, one question; `python -m optbench.study NAME` makes and reads the runs."""
