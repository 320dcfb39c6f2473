"""Tests. Each process has one thread: they share the cores, and rounding depends on threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
