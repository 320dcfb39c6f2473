"""Error of the layers with a cheap second derivative."""


class ThirdDerivativeError(RuntimeError):
    """A third derivative was asked of a layer that has two: the model differentiates by itself."""
