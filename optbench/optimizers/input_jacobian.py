"""SAM without what it does to the input Jacobian, and a Jacobian reducer with what flattens or not.

With g = ∇L(w), SAM's extra e = ∇L(w + ρg/‖g‖) − g, and r = ∇R(w), R = E‖∂f/∂x‖²_F over the batch:
e is the slope of what SAM flattens, L(w + ρg/‖g‖) − L(w), the ascent held fixed. A step along −e
lowers R where ⟨e, r⟩ > 0, and one along −r flattens then. Each optimizer takes the other's part out
of its own, and keeps the length of that and of the whole step.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from optbench.boundary.kinds import NotNegative
from optbench.errors import UserError
from optbench.optimizers.sam import SAM
from optbench.optimizers.wrapper import Closure, Factory, copy_all

Parts = list[Tensor]
"""A tensor for each parameter; their inner products and norms are over all together."""


class LooksAtInputs(SAM):
    """SAM's ascent, and the slope of the input Jacobian, which needs the model and its inputs.

    Whoever trains calls `look_at(model, inputs)` before each `step(closure)`, as the training loop
    does; a look serves one step. The Jacobian costs a backward pass an output and one through them.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ of the ascent, not negative.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], base: Factory, rho: NotNegative = 0.05
    ) -> None:
        super().__init__(params, base, rho)
        self._seen: tuple[nn.Module, Tensor] | None = None

    def look_at(self, model: nn.Module, inputs: Tensor) -> None:
        """Take the model and the inputs, (B, …), of the batch that the next step is on."""
        self._seen = (model, inputs)

    def jacobian_slope(self, held: Sequence[Tensor]) -> Parts:
        """The slope r = ∇E‖∂f/∂x‖²_F at the parameters, over the batch that was looked at.

        Raises:
            UserError: If no batch was looked at since the last step, or inputs are tokens.
        """
        name = type(self).__name__
        if self._seen is None:
            raise UserError(
                f"{name} needs the model and the inputs of the batch: say "
                "optimizer.look_at(model, inputs) before each optimizer.step(closure)"
            )
        (model, inputs), self._seen = self._seen, None
        if not inputs.is_floating_point():
            raise UserError(
                f"{name} needs the input Jacobian, and inputs that are tokens have none"
            )
        with torch.enable_grad():
            x = inputs.detach().requires_grad_()
            f = model(x).flatten(1)
            total = f.new_zeros(())
            for c in range(f.shape[1]):
                (row,) = torch.autograd.grad(
                    f[:, c].sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
                )
                total = total + row.square().sum() / len(x)
            if not total.requires_grad:  # the outputs are linear in x with constant coefficients
                return [torch.zeros_like(p) for p in held]
            slopes = torch.autograd.grad(total, held, allow_unused=True, materialize_grads=True)
        return [slope.detach() for slope in slopes]

    def extra(self, closure: Closure, held: Sequence[Tensor], g: Sequence[Tensor]) -> Parts:
        """SAM's extra e = ∇L(w + ρg/‖g‖) − g; the weights are w again, `.grad` is not g."""
        before = [p.clone() for p in held]
        for p, up in zip(held, self.ascent(held), strict=True):
            p.add_(up)
        with torch.enable_grad():
            closure()
        copy_all(held, before)
        return [p.grad - each for p, each in zip(held, g, strict=True) if p.grad is not None]

    def take(self, held: Sequence[Tensor], gradient: Sequence[Tensor]) -> None:
        """Let the base step with this gradient."""
        for p, each in zip(held, gradient, strict=True):
            p.grad = each
        self.base.step()

    def begin(self, closure: Closure) -> tuple[Tensor, list[Tensor], Parts]:
        """The loss, the parameters that have a gradient, and copies of that."""
        with torch.enable_grad():
            loss = closure()
        held = self.held()
        return loss, held, [p.grad.clone() for p in held if p.grad is not None]

    def needed(self, closure: Closure | None) -> Closure:
        """The closure; a UserError if there is none."""
        if closure is None:
            raise UserError(
                f"{type(self).__name__} takes its gradients itself, so it needs a closure: "
                "optimizer.step(closure)"
            )
        return closure


class SAMWithoutJacobian(LooksAtInputs):
    """SAM less the part of its extra that lowers the input Jacobian, its step as long as SAM's.

        e' = e − max(0, ⟨e, r⟩) r/‖r‖², at the length ‖e‖;   step with g + e', at the length ‖g + e‖

    A probe of what makes SAM generalize, and no optimizer to prefer. Its control is the sham: what
    is taken out lies along a direction drawn anew at each step, at the angle that r has to e.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        rho: Radius ρ of the ascent, not negative.
        sham: Whether r is replaced by a random direction at its angle to e.

    References:
        Foret et al. (2021), arXiv:2010.01412, for SAM; the projection is ours.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        rho: NotNegative = 0.05,
        sham: bool = False,
    ) -> None:
        super().__init__(params, base, rho)
        self.sham = bool(sham)
        if self.sham:  # how many directions have been drawn, with the first parameter's state
            first = self.param_groups[0]["params"][0]
            self.state[first] = {"drawn": torch.zeros((), dtype=first.dtype, device=first.device)}

    def _turned(self, r: Sequence[Tensor], e: Sequence[Tensor]) -> Parts:
        """A random direction of length 1 at the angle that r has to e; 0 where either is 0."""
        (count,) = (own["drawn"] for own in self.state.values() if "drawn" in own)
        rng = torch.Generator().manual_seed(int(count))
        count += 1
        noise = [torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p) for p in e]
        square = _inner(e, e)
        along = _inner(noise, e) / square
        across = [a - along * b for a, b in zip(noise, e, strict=True)]
        cosine = _inner(e, r) / (square * _inner(r, r)).sqrt()
        sine = (1 - cosine.square()).clamp(min=0).sqrt()
        size = _inner(across, across).sqrt()
        turned = [
            cosine / square.sqrt() * a + sine / size * b for a, b in zip(e, across, strict=True)
        ]
        return [torch.nan_to_num(each) for each in turned]

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take SAM's two gradients, project the second, let the base step; return the loss at w."""
        closure = self.needed(closure)
        loss, held, g = self.begin(closure)
        r = self.jacobian_slope(held)
        e = self.extra(closure, held, g)
        whole = _sum(g, without(e, self._turned(r, e) if self.sham else r))
        self.take(held, _as_long_as(whole, _sum(g, e)))
        return loss


class JacobianReducer(LooksAtInputs):
    """The gradient of L + μR, R = E‖∂f/∂x‖²_F over the batch, with or without what flattens in it.

        r' = r − max(0, ⟨r, e⟩) e/‖e‖², at the length ‖r‖;   step with g + μr', at ‖g + μr‖

    With `flattens`, r' = r, one gradient of the loss an update; without, two as SAM.

    Args:
        params: Parameters of one model.
        base: Makes the optimizer that takes the step.
        mu: Weight μ of the penalty, not negative.
        flattens: Whether the part of −r that flattens, along −e, is kept.
        rho: Radius ρ of the ascent that e is taken with, not negative.

    References:
        Sokolić et al. (2017), arXiv:1605.08254, for the penalty; the projection is ours.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Factory,
        mu: NotNegative = 0.01,
        flattens: bool = True,
        rho: NotNegative = 0.05,
    ) -> None:
        if not mu >= 0:
            raise UserError(f"optimizer.mu must not be negative, got {mu}")
        super().__init__(params, base, rho)
        self.mu, self.flattens = float(mu), bool(flattens)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Add the penalty's gradient, projected or not, let the base step; return the loss at w."""
        closure = self.needed(closure)
        loss, held, g = self.begin(closure)
        r = [self.mu * each for each in self.jacobian_slope(held)]
        whole = _sum(g, r)
        if not self.flattens:
            projected = without(r, self.extra(closure, held, g))
            whole = _as_long_as(_sum(g, projected), whole)
        self.take(held, whole)
        return loss


def without(part: Sequence[Tensor], other: Sequence[Tensor]) -> Parts:
    """The part less its component along another where they agree, at the part's own length.

    0 where nothing else is left of it.
    """
    inner = _inner(part, other)
    square = _inner(other, other)
    share = torch.where(square > 0, inner.clamp(min=0) / square, torch.zeros_like(square))
    return _as_long_as([a - share * b for a, b in zip(part, other, strict=True)], part)


def _as_long_as(vector: Sequence[Tensor], model: Sequence[Tensor]) -> Parts:
    """The vector at the length of another; 0 stays 0."""
    size = _inner(vector, vector).sqrt()
    wanted = _inner(model, model).sqrt()
    scale = torch.where(size > 0, wanted / size, torch.zeros_like(size))
    return [scale * each for each in vector]


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _sum(one: Sequence[Tensor], other: Sequence[Tensor]) -> Parts:
    return [a + b for a, b in zip(one, other, strict=True)]
