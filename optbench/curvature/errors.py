"""Errors and warnings: why a curvature cannot be measured, or should not be trusted."""


class MeasurementError(ValueError):
    """The curvature cannot be measured correctly; the message says why, and the way out."""


class WeightingWarning(UserWarning):
    """The loss over all batches is not the mean of batch losses weighted by example counts."""


class SecondDerivativeWarning(UserWarning):
    """Products H v differ from finite differences of the gradient.

    Part of the loss is detached, or an operation has a wrong second derivative.
    """


class NotConvergedWarning(UserWarning):
    """A search for eigenvalues ended at its limit of products, before its tolerance was met."""
