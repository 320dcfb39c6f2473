"""What keeps a curvature from being measured, or from being trusted, in words."""


class MeasurementError(ValueError):
    """The curvature asked for cannot be measured right: one line that says why, and the way out."""


class WeightingWarning(UserWarning):
    """The loss over all batches is not the mean over examples that the batches are weighted by."""


class SecondDerivativeWarning(UserWarning):
    """Products are not the differences of the gradient: part of the loss is detached, or has a wrong derivative."""


class NotConvergedWarning(UserWarning):
    """A search for eigenvalues ended at its limit of products, before its tolerance was met."""
