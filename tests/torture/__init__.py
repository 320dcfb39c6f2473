"""Runs that are killed, cut off from power and damaged, and must end as if nothing had happened.

`python -m tests.torture --minutes N` goes on for as long as one says, and ends with a line `FIGURE
…`.
"""
