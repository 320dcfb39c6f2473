"""Weights that move while every training output stays: the constraint f(w) = f(w₀).

    P_⊥ = I − Jᵀ(JJᵀ)⁻¹J,   J = ∂f/∂w at all training inputs, (N·C, P)

A step along P_⊥ v leaves the outputs to first order; what is left is taken back by Gauss–Newton,
w ← w − Jᵀ(JJᵀ)⁻¹(f(w) − f(w₀)), the shortest step that does so.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn.modules.batchnorm import _BatchNorm

from optbench.curvature.errors import MeasurementError
from optbench.curvature.selection import named_trainable
from optbench.lab.point import Point

ROUNDS = 8
"""Most Gauss–Newton steps, and most refinements of a projection."""

RIDGE = 1e-10
"""Share of its mean diagonal that is added to JJᵀ: two equal examples make it singular."""


class HeldError(MeasurementError):
    """These outputs cannot be held by these weights; the message says why, and the way out."""


@dataclass(frozen=True)
class Factors:
    """Per-example Jacobian of a linear layer: ∂f_c(x_i)/∂W = δ_ic a_iᵀ, ∂f_c(x_i)/∂b = δ_ic.

    Attributes:
        inputs: a, (N, in).
        slopes: δ, (N, C, out).
        weight: Whether W is trained.
        bias: Whether b is.
    """

    inputs: Tensor
    slopes: Tensor
    weight: bool
    bias: bool

    def gram(self) -> Tensor:
        """⟨a_i, a_j⟩, of the weights, plus 1, of the biases; (N, N)."""
        products = self.inputs @ self.inputs.T
        return products * self.weight + float(self.bias)


class Network:
    """A network of linear layers as a function of its flat weights, in double precision.

    Args:
        point: The model with its task; it is copied, in eval mode.

    Raises:
        HeldError: If a trained weight is in another kind of layer, or an example's outputs depend
            on the other examples.
    """

    def __init__(self, point: Point) -> None:
        names = list(named_trainable(point.model))
        with point.reading() as model:
            self.model = copy.deepcopy(model).double().requires_grad_(False)
        weights = dict(self.model.named_parameters())
        self.shapes = {name: weights[name].shape for name in names}
        self.layers = {
            name: layer for name, layer in self.model.named_modules() if type(layer) is nn.Linear
        }
        self._check(self.model)
        self.start = torch.cat([weights[name].flatten() for name in names])
        self.inputs, self.targets = point.train.inputs.double(), point.train.targets
        self.criterion = point.task.loss
        self.warm: Tensor | None = None  # where the next search for λ₁ begins

    def _check(self, model: nn.Module) -> None:
        held = {_within(layer, p) for layer in self.layers for p in ("weight", "bias")}
        others = [name for name in self.shapes if name not in held]
        if others:
            raise HeldError(
                f"outputs are held by the weights of linear layers, and {others[0]} is in another "
                "kind of layer: take a fully connected network without norm layers"
            )
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise HeldError("with batch norm an example's outputs depend on the other examples")

    def named(self, w: Tensor) -> dict[str, Tensor]:
        """The flat weights, (P,), as tensors by name."""
        parts = w.split([shape.numel() for shape in self.shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def outputs(self, w: Tensor, inputs: Tensor | None = None) -> Tensor:
        """f(x; w), (N, C), at the training inputs unless others are given."""
        x = self.inputs if inputs is None else inputs
        found: Tensor = functional_call(self.model, self.named(w), (x,))
        return found

    def loss(self, w: Tensor) -> Tensor:
        """Mean training loss, a scalar."""
        return self.criterion(self.outputs(w), self.targets)

    def features(self, w: Tensor) -> Tensor:
        """Inputs of the last linear layer, (N, H)."""
        seen: list[Tensor] = []
        last = list(self.layers.values())[-1]
        handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.outputs(w)
        finally:
            handle.remove()
        return seen[-1]

    def factors(self, w: Tensor) -> list[Factors]:
        """The per-example Jacobian of each layer; it can be differentiated in w.

        A zero ε is added to what a layer puts out: ∂f/∂ε is δ, by one backward pass for each of the
        C outputs, of all examples together.

        Raises:
            HeldError: If a layer is used twice, or sees other than one row an example.
        """
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(name: str, a: Tensor, out: Tensor) -> Tensor:
            if name in seen or a.ndim != 2:
                raise HeldError(f"layer {name} is not used once, with one row for each example")
            zero = torch.zeros_like(out).requires_grad_()
            seen[name] = (a, zero)
            return out + zero

        handles = [
            layer.register_forward_hook(lambda _, a, out, name=name: hook(name, a[0], out))
            for name, layer in self.layers.items()
        ]
        try:
            with torch.enable_grad():
                f = self.outputs(w)
        finally:
            for handle in handles:
                handle.remove()
        zeros = [zero for _, zero in seen.values()]
        rows = [
            torch.autograd.grad(
                f[:, c].sum(), zeros, create_graph=w.requires_grad, retain_graph=True
            )
            for c in range(f.shape[1])
        ]
        return [
            Factors(
                a,
                torch.stack(slopes, 1),
                _within(name, "weight") in self.shapes,
                _within(name, "bias") in self.shapes,
            )
            for (name, (a, _)), *slopes in zip(seen.items(), *rows, strict=True)
        ]

    def kernel(self, w: Tensor) -> Tensor:
        """JJᵀ, (N·C, N·C): Σ over layers of ⟨δ_ic, δ_jd⟩(⟨a_i, a_j⟩ + 1)."""
        total: Tensor | None = None
        for each in self.factors(w.detach()):
            n, width, _ = each.slopes.shape
            slopes = each.slopes.flatten(0, 1)
            products = (slopes @ slopes.T).view(n, width, n, width)
            products = products * each.gram()[:, None, :, None]
            total = products if total is None else total + products
        assert total is not None
        return total.detach().view(n * width, n * width)


def _within(layer: str, parameter: str) -> str:
    return f"{layer}.{parameter}" if layer else parameter


class HeldOutputs:
    """The training outputs of a network as a constraint on its weights.

    JJᵀ is factored at the weights of a projection and used in the correction that follows; where
    Gauss–Newton with it does not converge fast, it is factored anew.

    Args:
        network: The network; its outputs at its start are held.
        tolerance: Largest relative deviation ‖f(w) − f(w₀)‖/‖f(w₀)‖.

    Raises:
        HeldError: If there are not more weights than outputs.
    """

    def __init__(self, network: Network, tolerance: float = 1e-3) -> None:
        self.network, self.tolerance = network, tolerance
        self.target = network.outputs(network.start).flatten()
        held, weights = len(self.target), len(network.start)
        if weights <= held:
            raise HeldError(
                f"{held} training outputs (N·C) are held by more than {held} weights, and the "
                f"model has {weights}: take fewer examples or a wider network"
            )
        self._factor: Tensor | None = None

    def deviation(self, w: Tensor) -> float:
        """‖f(w) − f(w₀)‖/‖f(w₀)‖."""
        return float(self._off(w).norm() / self.target.norm())

    def project(self, w: Tensor, v: Tensor, accuracy: float = 1e-6) -> Tensor:
        """P_⊥ v at w, (P,): the part of v along which no output moves to first order.

        Args:
            w: Weights, (P,).
            v: Direction, (P,).
            accuracy: ‖J P_⊥ v‖ over ‖J v‖ that is let pass; what rounding leaves of an
                ill-conditioned JJᵀ is taken out by repeating.
        """
        self._factor = None
        back = vjp(self._flat, w)[1]
        rate = jvp(self._flat, (w,), (v,))[1]
        enough = accuracy * float(rate.norm())
        for _ in range(ROUNDS):
            if float(rate.norm()) <= enough:
                break
            v = v - back(self._solve(w, rate))[0]
            rate = jvp(self._flat, (w,), (v,))[1]
        return v

    def correct(self, w: Tensor) -> Tensor | None:
        """Return weights near w whose outputs are held, by Gauss–Newton; None if it fails.

        It goes on to half of the tolerance, which leaves room for the next step.
        """
        before = 0.5  # farther off, the linear picture says nothing
        for _ in range(ROUNDS):
            off = self._off(w)
            size = float(off.norm() / self.target.norm())
            if size <= self.tolerance / 2:
                return w
            if not size < before:
                return None
            if size > before / 3:
                self._factor = None
            before = size
            w = w - vjp(self._flat, w)[1](self._solve(w, off))[0]
        return None

    def _flat(self, w: Tensor) -> Tensor:
        return self.network.outputs(w).flatten()

    def _off(self, w: Tensor) -> Tensor:
        with torch.no_grad():
            return self._flat(w) - self.target

    def _solve(self, w: Tensor, u: Tensor) -> Tensor:
        """(JJᵀ)⁻¹u."""
        if self._factor is None:
            kernel = self.network.kernel(w)
            kernel.diagonal().add_(RIDGE * float(kernel.diagonal().mean()))
            self._factor = torch.linalg.cholesky(kernel)
        return torch.cholesky_solve(u[:, None], self._factor)[:, 0]
