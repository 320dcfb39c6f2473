"""Several members' weights along a leading dimension, updated together.

Members are experiments of one configuration that differ in their seed. Stacked weights have the
shape (S, *shape), and each member's own parameters are views of its row: whatever reads a member's
model or optimizer, as probes and checkpoints do, sees where training stands.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from optbench.curvature.selection import named_trainable
from optbench.optimizers.nested import nested
from optbench.run.update import Update
from optbench.task import Loss, cross_entropy, half_mse

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus)
"""Layers that see no dimension: they take stacked activations as they are."""

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers with a fused step on the CPU. Subclasses may step otherwise, and are not meant."""
OWN_SETTINGS = ("params", "fused")
"""Settings in which the stack's optimizer differs from its members'."""

Forward = Callable[[Tensor], Tensor]


class NotTogetherError(Exception):
    """These members cannot be updated together; the message says why."""


class Stack:
    """Members updated together: one forward and backward pass, and one optimizer step or one each.

    Args:
        updates: Each member's update; its model's parameters become views of the stack.
        one_step: Whether one optimizer steps on the stacked weights, which is right for those that
            act on each weight by itself. Otherwise each member's own optimizer steps.

    Raises:
        NotTogetherError: If a setting or the kind of optimizer has no stacked form.
    """

    def __init__(self, updates: Sequence[Update], one_step: bool) -> None:
        self.updates, self.one_step = list(updates), one_step
        first = self.updates[0]
        _check(first)
        names = list(named_trainable(first.model))
        self.weights = [
            _stack_of([dict(u.model.named_parameters())[name] for u in self.updates])
            for name in names
        ]
        self._names = names
        self._forward, self.engine = _forward_of(self.updates, self.weights, names)
        self.optimizer = _stacked_optimizer(self.updates, self.weights) if one_step else None
        if self.optimizer is not None and first.schedule is not None:
            # else torch warns that the first's own optimizer, which never steps, has not stepped
            first.optimizer._opt_called = True  # type: ignore[attr-defined]
        self._sync_states()

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Update all members, each on its own batch; return their losses before it, (S,).

        Args:
            inputs: Inputs (S, B, …).
            targets: Targets (S, B, …).
        """
        with torch.enable_grad():
            losses = losses_of(self.updates[0].loss, self._forward(inputs), targets)
            gradients = torch.autograd.grad(losses.sum(), self.weights)
        if self.optimizer is not None:
            self._step_at_once(self.optimizer, gradients)
        else:
            self._step_each(gradients, losses)
        for update in self.updates:
            update.gradients += 1
        return losses.detach()

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs (S, B, …) of inputs (S, B, …), in the modes that the first member is in."""
        return self._forward(inputs)

    def _step_at_once(self, optimizer: Optimizer, gradients: Sequence[Tensor]) -> None:
        schedule = self.updates[0].schedule
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.contiguous()  # a fused step reads it as it lies in memory
        optimizer.step()
        if schedule is not None:  # all members have the same; the others follow in `sync`
            schedule.step()
            _copy_settings(self.updates[0].optimizer, optimizer)

    def _step_each(self, gradients: Sequence[Tensor], losses: Tensor) -> None:
        for i, update in enumerate(self.updates):
            for p, gradient in zip(update.parameters, gradients, strict=True):
                p.grad = gradient[i]
            calls = 0
            loss = losses[i].detach()

            def closure(loss: Tensor = loss) -> Tensor:
                nonlocal calls
                calls += 1
                return loss

            update.optimizer.step(closure)  # type: ignore[arg-type]
            if calls != 1:
                raise NotTogetherError(
                    f"{type(update.optimizer).__name__} asks for {calls} gradients an update"
                )
            if update.schedule is not None:
                update.schedule.step()

    def sync(self) -> None:
        """Let each member's optimizer and schedule stand where the stacked one does."""
        if self.optimizer is None:
            return
        self._sync_states()
        first = self.updates[0]
        for update in self.updates:
            if update.schedule is not None and first.schedule is not None and update is not first:
                update.schedule.load_state_dict(copy.deepcopy(first.schedule.state_dict()))
            _copy_settings(self.optimizer, update.optimizer)

    def _sync_states(self) -> None:
        """Give each member's optimizer its rows of the stacked state, as views."""
        if self.optimizer is None:
            return
        for weight, *own in zip(self.weights, *(u.parameters for u in self.updates), strict=True):
            state = self.optimizer.state.get(weight)
            if not state:
                continue
            for i, (p, update) in enumerate(zip(own, self.updates, strict=True)):
                update.optimizer.state[p] = {
                    name: _row(value, weight, i) for name, value in state.items()
                }


def _row(value: Any, weight: Tensor, i: int) -> Any:
    if isinstance(value, Tensor):
        return value[i] if value.shape == weight.shape else value.clone()
    return copy.deepcopy(value)


def _check(update: Update) -> None:
    if update.micro_batch_size is not None:
        raise NotTogetherError("micro_batch_size is set")
    if update.clip_norm is not None:
        raise NotTogetherError("clip_norm is set: it is a norm of each member's whole gradient")
    if update.autocast:
        raise NotTogetherError("dtype is bf16")
    if getattr(update.optimizer, "create_graph", False):
        raise NotTogetherError(f"{type(update.optimizer).__name__} differentiates the gradient")
    for module in update.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise NotTogetherError("batch norm in train mode changes its buffers at each pass")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise NotTogetherError("dropout draws its masks from each run's own random stream")


def _stack_of(members: Sequence[Tensor]) -> Tensor:
    """The stack (S, *shape) of the members' parameters, which become views of it."""
    stacked = torch.stack([p.detach() for p in members]).requires_grad_()
    for i, p in enumerate(members):
        p.data = stacked.detach()[i]
    return stacked


def losses_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each member, (S,), for outputs (S, B, …) and targets (S, B, …)."""
    if loss is cross_entropy and outputs.ndim == 3:
        each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return each.view(len(outputs), -1).mean(1)
    if loss is half_mse:
        return 0.5 * (outputs - targets).square().flatten(1).sum(1) / outputs.shape[1]
    found: Tensor = vmap(loss)(outputs, targets)
    return found


def _forward_of(
    updates: Sequence[Update], weights: Sequence[Tensor], names: Sequence[str]
) -> tuple[Forward, str]:
    """Outputs (S, B, …) of inputs (S, B, …), and how: products of stacks, or `vmap`."""
    model = updates[0].model
    by_name = dict(zip(names, weights, strict=True))
    try:
        layers = list(_layers(model, "", by_name))
    except NotTogetherError:
        return _mapped(updates, by_name), "vmap"

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return forward, "bmm"


def _layers(module: nn.Module, name: str, weights: dict[str, Tensor]) -> Iterator[Forward]:
    """The stacked form of each layer of a sequence.

    Raises:
        NotTogetherError: If one has none here.
    """
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for key, child in module.named_children():
            yield from _layers(child, f"{name}{key}.", weights)
    elif type(module) is nn.Linear:
        yield _linear(weights[f"{name}weight"], weights.get(f"{name}bias"))
    elif type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        yield lambda x: x.flatten(2)
    elif type(module) is nn.LayerNorm:
        affine = (weights.get(f"{name}weight"), weights.get(f"{name}bias"))
        yield _layer_norm(module, *affine)
    elif isinstance(module, ELEMENTWISE):
        yield module
    elif not isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
        raise NotTogetherError(f"{type(module).__name__} has no stacked form")


class _StackedLinear(torch.autograd.Function):
    """y_s = x_s W_sᵀ + b_s for each member s, whose ∂L/∂W lies in memory as W does.

    torch differentiates with respect to Wᵀ, and so returns a transposed view. An optimizer that
    reads it beside W is up to twice as slow, and fused ones take none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs (S, B, m) of inputs (S, B, n), weights (S, m, n) and biases (S, m)."""
        ctx.save_for_backward(x, weight)
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂x = g W, ∂L/∂W = gᵀ x, ∂L/∂b = Σ g, for the slope g = ∂L/∂y, (S, B, m)."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.bmm(slope, weight) if needs_x else None,
            torch.bmm(slope.mT, x) if needs_weight else None,
            slope.sum(1) if needs_bias else None,
        )


def _linear(weight: Tensor, bias: Tensor | None) -> Forward:
    def linear(x: Tensor) -> Tensor:
        rows = x.flatten(1, -2)  # (S, B, d) as it is
        product: Tensor = _StackedLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return product.view(*x.shape[:-1], -1)

    return linear


def _layer_norm(module: nn.LayerNorm, weight: Tensor | None, bias: Tensor | None) -> Forward:
    shape, eps = list(module.normalized_shape), module.eps

    def norm(x: Tensor) -> Tensor:
        between = x.ndim - 1 - len(shape)  # dimensions between the members' and the normalized
        x = F.layer_norm(x, shape, eps=eps)
        for p, act in ((weight, torch.mul), (bias, torch.add)):
            if p is not None:
                x = act(x, p.view(len(p), *between * [1], *shape))
        return x

    return norm


def _mapped(updates: Sequence[Update], weights: dict[str, Tensor]) -> Forward:
    frozen, buffers = stack_module_state([u.model for u in updates])
    fixed = {name: p.detach() for name, p in frozen.items() if name not in weights} | buffers
    model = updates[0].model

    def one(own: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(model, own, (x,))
        return found

    return lambda x: vmap(one)(weights | fixed, x)


def _stacked_optimizer(updates: Sequence[Update], weights: Sequence[Tensor]) -> Optimizer:
    """An optimizer of the members' class, with their settings and their state, of the stack.

    Raises:
        NotTogetherError: If it holds another optimizer, or the members' states differ in kind.
    """
    first = updates[0].optimizer
    if len(list(nested(first))) > 1:
        raise NotTogetherError(f"{type(first).__name__} holds another optimizer")
    stacked: Optimizer = type(first).__new__(type(first))
    stacked.__dict__.update(first.__dict__)  # copy.copy would leave out what a class adds
    stacked.__dict__.pop("step", None)  # a schedule's, which counts the steps of the first
    place = {id(p): k for k, p in enumerate(updates[0].parameters)}
    stacked.param_groups = [
        {**group, "params": [weights[place[id(p)]] for p in group["params"]]}
        for group in first.param_groups
    ]
    _fuse(stacked)
    stacked.state = type(first.state)(dict)
    for k, weight in enumerate(weights):
        states = [u.optimizer.state.get(u.parameters[k], {}) for u in updates]
        if states[0]:
            stacked.state[weight] = {
                name: _state_of([s[name] for s in states], weight, name) for name in states[0]
            }
    return stacked


def _fuse(optimizer: Optimizer) -> None:
    """Let an optimizer of torch's step by one pass over memory, to rounding as by its operations.

    On one thread, 16 MLPs of 13,130 weights take .15 ms for a step of Adam instead of .43.
    """
    if type(optimizer) not in FUSED:
        return
    refusing = ("fused", "foreach", "differentiable", "capturable")
    for group in optimizer.param_groups:
        on_cpu = all(p.is_cpu and p.is_contiguous() for p in group["params"])
        if on_cpu and not any(group.get(name) for name in refusing):
            group["fused"] = True


def _state_of(values: Sequence[Any], weight: Tensor, name: str) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.shape == weight.shape[1:] and first.ndim > 0:
        return torch.stack(list(values))
    same = [torch.equal(v, first) if isinstance(v, Tensor) else v == first for v in values]
    if not all(same):
        raise NotTogetherError(f"the members' optimizers differ in {name}")
    return first.clone() if isinstance(first, Tensor) else copy.deepcopy(first)


def _copy_settings(source: Optimizer, target: Optimizer) -> None:
    for ours, theirs in zip(target.param_groups, source.param_groups, strict=True):
        ours.update({key: value for key, value in theirs.items() if key not in OWN_SETTINGS})
