"""Mean loss of a chunk as a function of the selected parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.curvature.chunks import Pair
from optbench.curvature.corrected_operations import Measured
from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import (
    USUAL,
    Mode,
    differentiable,
    in_mode,
    kept_attributes,
    kept_buffers,
    seed_globals,
    untouched,
    without_parametrization_cache,
)
from optbench.curvature.loss_state import kept_state, modules_of, state_of
from optbench.curvature.selection import Selection, select, trainable
from optbench.fast_layers.graph import calling

PRECISIONS = (torch.float32, torch.float64)

Criterion = Callable[[Tensor, Tensor], Tensor]
"""criterion(outputs, targets): the mean over the batch's examples, a scalar."""


class Objective:
    """Model and loss as a pure function of the selected weights.

    It changes nothing in the model. A forward pass

    - runs on copies of the buffers, so that batch-norm statistics stay; and of the weights, if it
      writes to them;
    - draws random numbers from a fixed seed, so that a dropout mask is the same at every call;
    - runs in one precision, with autocast off, also inside the model;
    - runs uncompiled, since compiled graphs have no double backward.

    Args:
        model: The model.
        loss: Mean loss of a batch.
        params: Which parameters vary; see `select`.
        mode: "train", "eval", or None for the mode that the model is in when measured.
        dtype: Precision of the measurement; None for the parameters' own.

    Raises:
        MeasurementError: If the loss is declared to sum, if parameters differ in precision or
            device, are complex, or in half precision with no dtype given.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        params: Selection = None,
        mode: Mode | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        reduction = getattr(loss, "reduction", "mean")
        if reduction not in ("mean", "batchmean"):
            raise MeasurementError(
                f"loss must reduce by 'mean', got {reduction!r}: chunks are weighted by their size"
            )
        if mode not in (None, "train", "eval"):
            raise ValueError(f"mode must be 'train', 'eval' or None, got {mode!r}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.mode = mode
        self.selection = (
            params
            if params is None or callable(params) or isinstance(params, str)
            else list(params)
        )
        self.names = select(self.model, self.selection)
        self.others = modules_of(loss, self.model)
        weights = self._weights()
        self.shapes = [p.shape for p in weights]
        self.sizes = [p.numel() for p in weights]
        self.dtype, self.device = _precision(weights, dtype)
        self.both = _Both(self.model, loss, self.dtype)
        self.cheap = True  # whether layers with a cheap second derivative may be used
        self.operations = Measured(self.dtype)
        # Whether a forward pass was seen to write to the weights: it then gets copies.
        self.writes = False
        # Whether the loss was seen to read the weights only through the model's parameters.
        self._checked = False

    def leaves(self) -> list[Tensor]:
        """New leaf tensors with the current selected weights.

        They share the model's storage, unless a forward pass writes to the weights or the precision
        differs.
        """
        return [self._detached(p).to(self.dtype).requires_grad_() for p in self._weights()]

    def in_double(self) -> Objective:
        """The same function in double precision."""
        double = Objective(self.model, self.both.loss, self.names, self.mode, torch.float64)
        double.writes, double.cheap = self.writes, self.cheap
        double.differentiates_itself = self.differentiates_itself
        return double

    def check_parameters(self) -> None:
        """Raise an error unless the selected parameters are the same as before, and finite.

        Raises:
            MeasurementError: If other parameters train than when this function was made.
            FloatingPointError: If a weight is not finite.
        """
        # A predicate may select other parameters now, after some were frozen or replaced.
        names = select(self.model, self.selection)
        shapes = [p.shape for p in self._weights()] if names == self.names else []
        if shapes != self.shapes:
            before, now = len(self.names), len(names)
            raise MeasurementError(
                f"the parameters that train have changed since this operator was made ({before} "
                f"tensors then, {now} now, or others): make a new one"
            )
        for name, weight in zip(self.names, self._weights(), strict=True):
            if not bool(weight.isfinite().all()):
                raise FloatingPointError(
                    f"weights must be finite, got {name} with NaN or infinity in it"
                )

    def own_dtypes(self) -> set[torch.dtype]:
        """Precisions that the selected weights have in the model."""
        return {p.dtype for p in self._weights()}

    def _weights(self) -> list[nn.Parameter]:
        chosen = set(self.names)
        return [p for name, p in self.model.named_parameters() if name in chosen]

    def _detached(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self.writes else tensor.detach()

    def split(self, rows: Tensor) -> list[Tensor]:
        """Views of flat vectors, shape (…, P), one per parameter p, of shape (…, *p.shape)."""
        parts = torch.split(rows, self.sizes, dim=-1)
        return [p.view((*rows.shape[:-1], *s)) for p, s in zip(parts, self.shapes, strict=True)]

    def outputs(self, leaves: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Model outputs f(x) with the leaves in place of the weights."""
        return self._call(leaves, "outputs", inputs)

    def scalar(self, leaves: Sequence[Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of given outputs, a scalar."""
        return self._scalar(self._call(leaves, "loss", outputs, targets))

    def value(self, leaves: Sequence[Tensor], chunk: Pair) -> Tensor:
        """Mean loss of the chunk, a scalar."""
        return self._scalar(self._call(leaves, "value", *chunk))

    def _scalar(self, value: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.ndim:
            got = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise MeasurementError(f"loss must return a scalar mean, got {got}")
        if value.is_complex():
            raise MeasurementError(
                f"loss must be real, got {value.dtype}: take .real, or the square of .abs()"
            )
        if not self._checked and value.requires_grad:
            self._refuse_own_weights(value)
        return value

    def _call(self, leaves: Sequence[Tensor], part: str, *arguments: Tensor) -> Tensor:
        seed_globals(self.device, 1)  # the same dropout mask at every call
        state = {f"model.{name}": leaf for name, leaf in zip(self.names, leaves, strict=True)}
        # Parameters that are not selected are constants.
        for name, p in self.both.named_parameters():
            if name not in state:
                state[name] = self._cast(self._detached(p))
        # Copies, so that batch-norm statistics of the model stay as they are.
        state |= {name: self._cast(b.detach().clone()) for name, b in self.both.named_buffers()}
        with (
            calling("model"),
            kept_attributes(self.both),
            kept_state(self.both.loss),
            without_parametrization_cache(),
        ):
            result: Tensor = functional_call(self.both, state, (part, *arguments))
        return result

    @property
    def differentiates_itself(self) -> bool:
        """Whether model or loss take derivatives, so that a Hessian needs a third derivative."""
        return self.operations.any_order

    @differentiates_itself.setter
    def differentiates_itself(self, value: bool) -> None:
        self.operations.any_order = value
        self.cheap = self.cheap and not value

    def _refuse_own_weights(self, value: Tensor) -> None:
        """Check once that the loss depends on the weights only through the leaves."""
        parameters = trainable(self.model)
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            raise MeasurementError(
                "loss reads weights that were taken out of the model beforehand: let it call "
                "model.parameters() itself, so that it sees the weights it is differentiated at"
            )
        self._checked = True

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Context for products along an existing graph: mode set, gradients on, autocast off."""
        with (
            untouched(self.both) if self.writes else contextlib.nullcontext(),
            in_mode(self.model, self.mode),
            differentiable(self.device),
            kept_buffers(self._norms()),
            self.operations,
        ):
            yield

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[list[str]]:
        """Context for forward passes: as `measured`, and undoes what they write to model and loss.

        Yields:
            A list which holds, at the end, the names of the parameters that were written to.
        """
        with contextlib.ExitStack() as stack:
            written = stack.enter_context(untouched(self.both))
            for module in self.others:
                stack.enter_context(untouched(module))
            stack.enter_context(self.measured())
            yield written

    def watch_writes(self, run: Callable[[], object]) -> None:
        """Run forward passes; if they write to weights, run them again on copies.

        The first graphs are then of no use: they hold the weights as written.
        """
        with self.evaluated() as written:
            run()
        if written and not self.writes:
            self.writes = True
            with self.evaluated():
                run()

    def fingerprint(self) -> tuple[object, ...]:
        """A tuple that changes when weights, buffers, modules, their modes or settings change.

        It misses writes through `.data`, to lists and dicts, and to globals that the loss reads;
        call `refresh()` after those.
        """
        seen: list[object] = []  # one walk through the modules, since every product asks for this
        others = (module for root in self.others for module in root.modules())
        for module in (*self.both.modules(), *others):
            seen += (
                id(module),
                module.training,
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
            )
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    seen += _place(tensor), tensor._version, tensor.requires_grad
            for name in vars(module).keys() - USUAL:
                value = vars(module)[name]
                seen += _mark(value)
        for value in state_of(self.both.loss):
            seen += _mark(value)
        return tuple(seen)

    def modes(self) -> tuple[bool, ...]:
        """Whether each module is in train mode; how a batch may be cut depends on it."""
        return tuple(module.training for module in self.model.modules())

    def mixes_examples(self) -> bool:
        """Whether a batch norm uses statistics of the chunk, so that examples affect each other."""
        return any(
            (m.training if self.mode is None else self.mode == "train") or m.running_mean is None
            for m in self._norms()
        )

    def never_mixes(self) -> bool:
        """Whether no batch norm does so, in whatever mode the model is put later."""
        norms = self._norms()
        return not norms or (self.mode == "eval" and not self.mixes_examples())

    def draws(self, inputs: Tensor) -> bool:
        """Whether a forward pass draws random numbers, such as a dropout mask."""

        def state() -> Tensor:
            cuda = self.device.type == "cuda"
            return (
                torch.cuda.get_rng_state(self.device)
                if cuda
                else torch.default_generator.get_state()
            )

        seed_globals(self.device, 1)
        before = state()
        # Gradients stay on: the model may differentiate by itself.
        self._call(self.leaves(), "outputs", inputs)
        return not torch.equal(before, state())

    def _norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


class _Both(nn.Module):
    """Model and loss in one module, so that an L2 term in the loss reads the leaves' weights."""

    def __init__(self, model: nn.Module, loss: Criterion, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.loss, self.dtype = model, loss, dtype

    def forward(self, part: str, *arguments: Tensor) -> Tensor:
        if part == "loss":
            return self.loss(*arguments)
        outputs: Tensor = self.model(arguments[0])
        if (
            isinstance(outputs, Tensor)
            and outputs.is_floating_point()
            and outputs.dtype != self.dtype
        ):
            raise MeasurementError(
                f"the model's outputs must be {self.dtype}, got {outputs.dtype}: curvature in "
                "mixed precision is not trusted, switch casts off inside the model"
            )
        return outputs if part == "outputs" else self.loss(outputs, arguments[1])


def _mark(value: object) -> tuple[object, ...]:
    """A tuple that changes when the value does, as far as Python and torch show it."""
    if isinstance(value, Tensor):
        return _place(value), value._version
    return (value if isinstance(value, (bool, int, float, str, type(None))) else id(value),)


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)


def _precision(
    weights: Sequence[Tensor], dtype: torch.dtype | None
) -> tuple[torch.dtype, torch.device]:
    """Precision of the measurement and device of the weights, checked."""
    dtypes, devices = {p.dtype for p in weights}, {p.device for p in weights}
    if any(device.type == "meta" for device in devices):
        raise MeasurementError(
            "parameters must have data, got some on device meta: model.to_empty(device=…), load "
            "them"
        )
    if len(devices) > 1:
        raise MeasurementError(f"parameters must be on one device, got {sorted(map(str, devices))}")
    if any(d.is_complex for d in dtypes):
        raise MeasurementError(
            f"parameters must be real, got {sorted(map(str, dtypes))}: hold real and imaginary "
            "parts as parameters (torch.view_as_complex in the forward pass), or leave these out "
            "with params=[…]"
        )
    if dtype is None and len(dtypes) > 1:
        raise MeasurementError(
            f"parameters must have one dtype, got {sorted(map(str, dtypes))}: pass "
            "dtype=torch.float32"
        )
    precision = dtype or dtypes.pop()
    if precision not in PRECISIONS:
        raise MeasurementError(
            f"dtype must be float32 or float64, got {precision}: pass dtype=torch.float32"
        )
    return precision, devices.pop()
