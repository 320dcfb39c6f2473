"""What a layer with a cheap second derivative cannot do."""


class ThirdDerivativeError(RuntimeError):
    """A layer that has two derivatives was to be differentiated once more: the model differentiates by itself."""
