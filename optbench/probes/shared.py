"""Quantities that the probes of one step share: Hessian, gradient and edge, built at most once."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optbench.boundary.counting import counted
from optbench.curvature import Hessian, SecondDerivativeWarning, WeightingWarning
from optbench.curvature.selection import named_trainable, trainable
from optbench.dynamics import edge
from optbench.dynamics.edges import Edge
from optbench.probes.pace import Pace
from optbench.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from optbench.probes import State

HALF = (torch.float16, torch.bfloat16)


class Shared:
    """Shared quantities of a run; those of one step are forgotten at its end, see `release`.

    Args:
        dtype: Precision of the measurements; None for that of the weights, or float32 where weights
            are in half precision.
        ranks: Processes that share the examples of a measurement.

    Attributes:
        top_vector: Unit eigenvector of λ₁(H) that the sharpness probe found at this step, flat,
            shape (P,), with the number of examples of H.
        pace: Adaptive cadence of the sharpness probe, if it is due at this step; probes that follow
            it tell it what they measured, and what that cost.
        notes: Conditions of the measurements, for the record: precision, modes of modules, layers.
        is_open_ended: Whether nobody knows which step is the last, as where `watch` measures.
        evaluations: Loss and error of each split at this step, where a batch of runs has found
            those of all its members at once; else empty.
    """

    def __init__(self, dtype: torch.dtype | None = None, ranks: Ranks = ALONE) -> None:
        self.dtype, self.ranks = dtype, ranks
        self.pace: Pace | None = None
        self.is_open_ended = False
        self.top_vector: tuple[Tensor, int | None] | None = None
        self.notes: dict[str, str] = {}
        self.evaluations: dict[str, dict[str, float]] = {}
        self._hessians: dict[int | None, tuple[ref[nn.Module], str, Hessian]] = {}
        self._slopes: dict[int | None, tuple[float, Tensor]] = {}
        self._edge: tuple[ref[Optimizer], Edge] | None = None

    def signature(self, state: State) -> str:
        """Digest of the names, shapes and dtypes of the parameters that train.

        Warm starts are only used while it stays the same.
        """
        named = named_trainable(state.model)
        trained = [(name, tuple(p.shape), p.dtype) for name, p in named.items()]
        return hashlib.sha256(repr(trained).encode()).hexdigest()[:16]

    def hessian(self, state: State, examples: int | None) -> Hessian:
        """Hessian of the training loss over the first `examples`, in the modules' current modes.

        Its graph is shared. It is made anew when other parameters train.

        Raises:
            MeasurementError: If the Hessian cannot be measured correctly.
        """
        known, signature = self._hessians.get(examples), self.signature(state)
        if known is None or known[0]() is not state.model or known[1] != signature:
            known = ref(state.model), signature, self._new_hessian(state, examples)
            self._hessians[examples] = known
        self._note_modes(state)
        return known[2]

    def _new_hessian(self, state: State, examples: int | None) -> Hessian:
        chosen = state.task.train.first(examples)
        data, dtype = (chosen.inputs, chosen.targets), self._precision(state)
        hessian = Hessian(
            state.model,
            state.task.loss,
            data,
            dtype=dtype,
            weight=state.task.weight,
            ranks=self.ranks,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hessian.prepare()
        for warning in caught:
            if issubclass(warning.category, (SecondDerivativeWarning, WeightingWarning)):
                state.say(f"curvature: {warning.message}")
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        self.notes |= {
            "precision": str(hessian.dtype).removeprefix("torch."),
            "layers": hessian.layers,
        }
        if hessian.layers != "fast":
            state.say(
                f"curvature: through {hessian.layers} layers, since the model differentiates by "
                "itself"
            )
        return hessian

    def _precision(self, state: State) -> torch.dtype | None:
        if self.dtype is not None:
            return self.dtype
        half = {p.dtype for p in trainable(state.model)} & {*HALF}
        if not half:
            return None
        state.say(f"curvature: weights are {sorted(map(str, half))[0]}, measured in torch.float32")
        return torch.float32

    def _note_modes(self, state: State) -> None:
        modules = dict(state.model.named_modules())
        held = [name or "the model" for name, module in modules.items() if not module.training]
        if not held:
            modes = "train"
        elif len(held) == len(modules):
            modes = "eval"
        else:
            modes = (
                f"train, eval for {len(held)} of {counted(len(modules), 'module')}: "
                f"{', '.join(held[:5])}"
            )
            modes += ", …" * (len(held) > 5)
        if modes != "train":
            state.say(f"curvature: measured with modules in the modes that they are in ({modes})")
        self.notes["modes"] = modes

    def loss_and_gradient(self, state: State, examples: int | None) -> tuple[float, Tensor]:
        """Training loss over the first `examples` and its gradient, flat, shape (P,)."""
        if examples not in self._slopes:
            self._slopes[examples] = self.hessian(state, examples).loss.value_and_gradient()
        return self._slopes[examples]

    def edge(self, state: State) -> Edge:
        """Edge of stability of the optimizer in its present state."""
        if self._edge is None or self._edge[0]() is not state.optimizer:
            self._edge = ref(state.optimizer), edge(state.optimizer)
        return self._edge[1]

    def release(self) -> None:
        """Forget this step's values and free its graphs; operators keep their plans."""
        for _, _, hessian in self._hessians.values():
            hessian.refresh()
        self._slopes, self._edge, self.top_vector, self.pace = {}, None, None, None
        self.evaluations = {}
