"""A run from Python: start it, stop it at a loss, open it again, fork it, measure it.

from optbench import lab
from optbench.lab import Below

run = lab.start("task=digits", "optimizer=adam", "batch_size=50", seed=3)
run.train(until=Below("train/loss", 0.02), keep=[0.1, 0.05, 0.02], steps=2000)
twin = run.at(loss=0.05).fork("optimizer=sgd", lr=0.3, seed=4).train(steps=100)
print(lab.open(run.folder).at().model)
"""

from optbench.lab.experiment import QUIET, Below, Run, open, start
from optbench.lab.snapshot import Snapshot

__all__ = ["QUIET", "Below", "Run", "Snapshot", "open", "start"]
