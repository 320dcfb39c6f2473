"""Pull a measure up or down while every training output stays.

    w ← w + s P_⊥∇m(w)/‖P_⊥∇m(w)‖,   then w ← w − Jᵀ(JJᵀ)⁻¹(f(w) − f(w₀))

What the training data sees is the same all along the path, so that what changes at test inputs is
owed to the pull. What is a function of the outputs, such as the margin, cannot be pulled. A random
direction z is the measure m(w) = ⟨z, w⟩; see `towards`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, vmap

from optbench.curvature import Eigenpairs, Loss, top_eigenpairs
from optbench.errors import UserError, nearest
from optbench.lab.held_outputs import HeldOutputs, Network
from optbench.lab.point import Point

Lever = Callable[[Network, Tensor], Tensor]
"""(network, flat weights) → a scalar that can be differentiated in the weights."""

LEAST = 1e-5
"""Step, as a share of ‖w₀‖, below which a measure counts as at its end."""

FREE = 1e-9
"""Share of the gradient that has to be left once the outputs are held; less is rounding."""


@dataclass(frozen=True)
class Pulled:
    """A state of the path.

    Attributes:
        step: Number of steps taken.
        weights: Flat weights w, (P,), in double precision.
        value: The measure m(w).
        deviation: ‖f(w) − f(w₀)‖/‖f(w₀)‖ at the training inputs.
    """

    step: int
    weights: Tensor
    value: float
    deviation: float

    def load(self, model: nn.Module) -> nn.Module:
        """Copy the weights into a model of the same shape, in its precision; return it."""
        nn.utils.vector_to_parameters(
            self.weights.clone().to(next(model.parameters()).dtype),
            [p for p in model.parameters() if p.requires_grad],
        )
        return model


def pull(
    point: Point,
    lever: str | Lever,
    sign: int,
    *,
    length: float = 0.02,
    steps: int = 50,
    tolerance: float = 1e-3,
) -> Iterator[Pulled]:
    """Yield the states of a path along which a measure rises or falls and all outputs are held.

    1. Take the gradient of the measure, and the part of it that moves no training output.
    2. Step along it, and take back what the outputs have moved, by Gauss–Newton.
    3. Where the measure has not moved as asked, or the outputs cannot be held, halve the step.

    The path ends when the step would be too small: the measure is at an end, within what the
    outputs leave free. Stop taking states to end it earlier. At a kink, such as where λ₁ meets λ₂,
    it may end before. In a ReLU network ∂f/∂x and the trace jump where a unit switches, which no
    gradient sees: take a smooth activation, such as gelu, or short steps.

    Args:
        point: The model with its task: fully connected, with more weights than outputs.
        lever: Name of a lever (`LEVERS`), or a function (network, flat weights) → scalar.
        sign: +1 to raise the measure, −1 to lower it.
        length: Longest step, as a share of ‖w₀‖.
        steps: Most steps.
        tolerance: Largest deviation of the outputs; each state yielded is within it.

    Raises:
        HeldError: If these outputs cannot be held by these weights.
        UserError: If there is no lever of the name, or the sign is not ±1.

    Examples:
        >>> for state in lab.pull(run.end.point(), "input_jacobian_train", -1, steps=10):
        ...     print(state.value, state.deviation)
    """
    if sign not in (1, -1):
        raise UserError(f"sign must be 1 (up) or -1 (down), got {sign}")
    function = find_lever(lever) if isinstance(lever, str) else lever
    network = Network(point)
    held = HeldOutputs(network, tolerance)
    w, scale = network.start, float(network.start.norm())
    value, slope = _value_and_slope(function, network, w)
    yield Pulled(0, w, value, 0.0)
    size = length * scale
    for step in range(1, steps + 1):
        way = held.project(w, sign * slope)
        if not float(way.norm()) > FREE * float(slope.norm()):
            return  # the outputs leave the measure no room
        way = way / way.norm()
        while True:
            tried = held.correct(w + size * way)
            if tried is not None:
                new, new_slope = _value_and_slope(function, network, tried)
                if sign * (new - value) > 0:
                    break
            size /= 2
            if size < LEAST * scale:
                return
        w, value, slope = tried, new, new_slope
        yield Pulled(step, w, value, held.deviation(w))
        size = min(length * scale, 1.5 * size)


def _value_and_slope(lever: Lever, network: Network, w: Tensor) -> tuple[float, Tensor]:
    leaf = w.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = lever(network, leaf)
        (slope,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), slope


def towards(direction: Tensor) -> Lever:
    """The lever ⟨z, w⟩ of a direction z, (P,): pulled up, it is a straight way as far as held.

    With random z it is the control of a pull: weights that move, outputs that stay, nothing sought.
    """
    return lambda _, w: direction.to(w) @ w


def random_direction(point: Point, seed: int) -> Tensor:
    """A normal direction, (P,), with the root mean square of each weight tensor as its scale."""
    rng = torch.Generator().manual_seed(seed)
    scales = [
        torch.full((p.numel(),), float(p.detach().double().square().mean().sqrt()))
        for p in point.parameters
    ]
    scale = torch.cat(scales).double()
    return scale * torch.randn(len(scale), generator=rng, dtype=torch.float64)


def find_lever(name: str) -> Lever:
    """Return a lever by its name.

    Raises:
        UserError: If there is none.
    """
    if name not in LEVERS:
        known = ", ".join(LEVERS)
        raise UserError(f"there is no lever called {name}.{nearest(name, LEVERS)} Known: {known}")
    return LEVERS[name]


def lever_values(network: Network, w: Tensor, names: Iterable[str]) -> dict[str, float]:
    """The values of some levers at flat weights, (P,)."""
    return {name: _value_and_slope(find_lever(name), network, w)[0] for name in names}


def sharpness(network: Network, w: Tensor) -> Tensor:
    """λ₁ = uᵀHu; ∇λ₁ = ∇(uᵀH(w)u) at fixed u, where λ₁ is simple."""
    u = _top_vector(network, w.detach())
    (gradient,) = torch.autograd.grad(network.loss(w), w, create_graph=True)
    (image,) = torch.autograd.grad(gradient @ u, w, create_graph=True)
    return image @ u


def _top_vector(network: Network, w: Tensor) -> Tensor:
    """Eigenvector of λ₁, (P,); the search begins at the one that the network had last."""
    model = network.model
    named = dict(model.named_parameters())
    nn.utils.vector_to_parameters(w, [named[name] for name in network.shapes])
    model.requires_grad_(True)
    try:
        data = (network.inputs, network.targets)
        loss = Loss(model, network.criterion, data, params=list(network.shapes))
        pairs: Eigenpairs = top_eigenpairs(loss.hessian(), 1, accuracy=1e-3, start=network.warm)
    finally:
        model.requires_grad_(False)
    network.warm = pairs.vectors
    return pairs.vectors[:, 0]


def trace(network: Network, w: Tensor) -> Tensor:
    """Trace of the Gauss–Newton matrix, (1/N) Σ_i tr(J_i ᵀA_i J_i), A = ∂²ℓ/∂f².

    In a network of linear layers and ReLUs it is the trace of the Hessian: each output is linear in
    any one weight, so that the diagonal of the other part is 0. A is that of the held outputs, a
    constant: its derivative is along Jᵀ, which a pull takes out.
    """
    with torch.no_grad():
        f = network.outputs(w)
        bend = vmap(hessian(_of_one(network)))(f, network.targets)
    total = f.new_zeros(())
    for each in network.factors(w):
        size = each.inputs.square().sum(1) * each.weight + float(each.bias)
        inner = torch.einsum("ncd,nco,ndo->n", bend, each.slopes, each.slopes)
        total = total + (size * inner).sum()
    return total / len(f)


def _of_one(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of one example, of its outputs and its target."""
    return lambda f, y: network.criterion(f[None], y[None])


def input_jacobian_train(network: Network, w: Tensor) -> Tensor:
    """E‖∂f/∂x‖²_F at the training inputs."""
    x = network.inputs.detach().clone().requires_grad_()
    f = network.outputs(w, x)
    total = f.new_zeros(())
    for c in range(f.shape[1]):
        (slope,) = torch.autograd.grad(f[:, c].sum(), x, create_graph=True)
        total = total + slope.square().sum()
    mean: Tensor = total / len(x)
    return mean


def weight_norm(network: Network, w: Tensor) -> Tensor:
    """‖w‖."""
    norm: Tensor = w.norm()
    return norm


def path_norm(network: Network, w: Tensor) -> Tensor:
    """√Σ over paths of Π w², biases as weights of an input of 1.

    Squared weights leave every unit ≥ 0, where a ReLU is the identity; so are other activations
    taken here, since a path is of weights alone.
    """
    ones = torch.ones_like(network.inputs[:1])
    activations = [
        module
        for module in network.model.modules()
        if not list(module.children()) and not isinstance(module, (nn.Linear, nn.Flatten))
    ]
    handles = [a.register_forward_hook(lambda _, given, out: given[0]) for a in activations]
    try:
        total: Tensor = network.outputs(w.square(), ones).sum().sqrt()
    finally:
        for handle in handles:
            handle.remove()
    return total


def fisher_rao_norm(network: Network, w: Tensor) -> Tensor:
    """E⟨∂ℓ/∂f, J w⟩², J = ∂f/∂w.

    In a ReLU network of L layers without biases Jw = Lf, and held outputs leave it no room. Biases,
    and activations that bend, do.
    """
    f = network.outputs(w)
    u = torch.zeros_like(f, requires_grad=True)
    (back,) = torch.autograd.grad(f, w, u, create_graph=True)  # Jᵀu
    (change,) = torch.autograd.grad(back @ w, u, create_graph=True)  # Jw
    slopes = vmap(grad(_of_one(network)))(f, network.targets)
    norm: Tensor = (slopes * change).flatten(1).sum(1).square().mean()
    return norm


def effective_rank(network: Network, w: Tensor) -> Tensor:
    """The effective rank exp H(p), p = σ²/Σσ² of the last hidden features, (N, H), not centred."""
    phi = network.features(w)
    squares = torch.linalg.eigvalsh(phi.T @ phi).clamp(min=0)
    p = (squares / squares.sum()).clamp(min=1e-12)  # the slope of p log p at 0 is infinite
    rank: Tensor = torch.special.entr(p).sum().exp()
    return rank


LEVERS: Mapping[str, Lever] = {
    "sharpness": sharpness,
    "trace": trace,
    "input_jacobian_train": input_jacobian_train,
    "weight_norm": weight_norm,
    "path_norm": path_norm,
    "fisher_rao_norm": fisher_rao_norm,
    "effective_rank": effective_rank,
}
"""What can be pulled, by the name of the measure that it is."""
