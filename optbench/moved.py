"""Module paths of earlier versions: they still import, and warn with the new one.

Code of users and of plug-ins may hold them. A name that a module no longer has is an AttributeError
as ever.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "arguments": "boundary.command_line",
    "batches": "run.batches",
    "check.parameters": "check.parameter_kinds",
    "check.probes": "check.probe_contract",
    "check.tasks": "check.task_contract",
    "checkpoint": "run.checkpoint",
    "compose": "configuration.compose",
    "config": "configuration.build",
    "curvature.bounds": "curvature.eigen.bounds",
    "curvature.checks": "curvature.eigen.audit",
    "curvature.differences": "curvature.second_derivatives",
    "curvature.heterogeneity": "curvature.block_spectra",
    "curvature.layers": "fast_layers",
    "curvature.objective": "curvature.chunk_loss",
    "curvature.pairs": "curvature.eigen.pairs",
    "curvature.reached": "curvature.loss_state",
    "curvature.recycling": "curvature.eigen.recycling",
    "curvature.repairs": "curvature.corrected_operations",
    "curvature.slope": "curvature.loss",
    "curvature.solver": "curvature.eigen.solver",
    "curvature.stochastic": "curvature.trace",
    "curvature.strategy": "curvature.product_strategy",
    "curvature.subspace": "curvature.eigen.subspace",
    "dynamics.adaptive": "dynamics.rules.adam",
    "dynamics.batches": "dynamics.minibatch_curvature",
    "dynamics.copies": "dynamics.black_box.responses",
    "dynamics.filters": "dynamics.momentum_filters",
    "dynamics.gain": "dynamics.black_box.scalar_gain",
    "dynamics.geometric": "dynamics.norm_step",
    "dynamics.matrix": "dynamics.rules.shampoo_soap",
    "dynamics.measures": "dynamics.critical_step",
    "dynamics.options": "dynamics.optimizer_options",
    "dynamics.ours": "dynamics.rules.optbench_optimizers",
    "dynamics.report": "dynamics.run_events",
    "dynamics.sharpening": "dynamics.progressive_sharpening",
    "dynamics.stability": "dynamics.edges",
    "dynamics.terms": "dynamics.update_rule",
    "dynamics.twin": "dynamics.black_box.twin",
    "dynamics.understood": "dynamics.option_coverage",
    "dynamics.undescribed": "dynamics.rules.no_edge",
    "dynamics.wrapped": "dynamics.rules.wrappers",
    "examples": "data.splits",
    "job": "cli.job",
    "leaderboard.folders": "leaderboard.run_folders",
    "leaderboard.index": "launch.index",
    "leaderboard.measures": "leaderboard.scores",
    "leaderboard.run": "leaderboard.run_line",
    "leaderboard.runs": "leaderboard.results_folder",
    "leaderboard.write": "leaderboard.write_together",
    "location": "paths",
    "memory": "run.memory",
    "messages": "configuration.explain",
    "norms": "optimizers.norms",
    "optimizer_state": "run.optimizer_state",
    "overrides": "boundary.overrides",
    "plugins": "configuration.plugins",
    "points": "protocol.points",
    "portable": "run.portable_state",
    "resume": "run.resume",
    "reuse": "configuration.finished",
    "runner": "run.loop",
    "studies.atlas": "studies.atlas_entries",
    "studies.choice": "studies.lr_choice",
    "studies.picture": "studies.atlas_picture",
    "suite": "protocol.suite",
    "sweep": "cli.sweep",
    "torchvision": "data.torchvision",
    "update": "run.update",
}
"""New path by the old one, both below `optbench`."""


class _Moved(Loader):
    """Makes a module whose names are those of the one that it has become."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        """Let the names of the new module be found in the old one."""
        warnings.warn(f"{module.__name__} is {self.new} now", DeprecationWarning, stacklevel=6)
        became = import_module(self.new)
        module.__dict__["__getattr__"] = lambda name: getattr(became, name)
        module.__dict__["__path__"] = []


class Finder(MetaPathFinder):
    """Finds what Python finds nowhere else, by its earlier path."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module that has moved; None for any other."""
        new = MOVED.get(name.removeprefix("optbench.")) if name.startswith("optbench.") else None
        return None if new is None else ModuleSpec(name, _Moved(f"optbench.{new}"))


def register() -> None:
    """Let the old paths be imported."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
