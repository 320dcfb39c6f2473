"""Curvature of a model's training loss, each number with its error bound and its cost."""

from optbench.curvature.block_spectra import block_densities, block_heterogeneity
from optbench.curvature.density import SpectralDensity, spectral_density
from optbench.curvature.eigen.audit import Audit, Rayleigh, audit, rayleigh
from optbench.curvature.eigen.lobpcg import top_eigenpairs
from optbench.curvature.eigen.pairs import Eigenpairs
from optbench.curvature.errors import (
    MeasurementError,
    NotConvergedWarning,
    SecondDerivativeWarning,
    WeightingWarning,
)
from optbench.curvature.held_out import HeldOut, held_out
from optbench.curvature.hessian import GaussNewton, Hessian
from optbench.curvature.loss import Loss, loss_and_gradient, mean_loss
from optbench.curvature.operators import Operator, Preconditioned, Restricted, Scaled
from optbench.curvature.selection import per_block, per_layer
from optbench.curvature.trace import DiagonalEstimate, TraceEstimate, diagonal, trace

__all__ = [
    "Audit",
    "DiagonalEstimate",
    "Eigenpairs",
    "GaussNewton",
    "HeldOut",
    "Hessian",
    "Loss",
    "MeasurementError",
    "NotConvergedWarning",
    "Operator",
    "Preconditioned",
    "Rayleigh",
    "Restricted",
    "Scaled",
    "SecondDerivativeWarning",
    "SpectralDensity",
    "TraceEstimate",
    "WeightingWarning",
    "audit",
    "block_densities",
    "block_heterogeneity",
    "diagonal",
    "held_out",
    "loss_and_gradient",
    "mean_loss",
    "per_block",
    "per_layer",
    "rayleigh",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
