"""One update: the closure that every optimizer is given, whatever its class."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optbench.curvature.selection import trainable
from optbench.errors import UserError
from optbench.optimizers.looking import look
from optbench.ranks import ALONE, Ranks
from optbench.task import Loss


@dataclass
class Update:
    """Calls `optimizer.step(closure)` on a batch, then the schedule.

    An optimizer that differentiates the gradient says so by a true attribute `create_graph`; then
    the closure leaves gradients with their graph in `.grad`. After the step they are there without.
    One that looks at the model and the inputs of the batch has a method `look_at(model, inputs)`.

    Attributes:
        micro_batch_size: Examples a forward and backward pass; bounds memory, the mathematics
            stays. None: all.
        clip_norm: Largest Euclidean norm of the whole gradient; None for no clipping.
        autocast: Forward passes in bfloat16 where that is safe; weights and loss stay in float32.
        ranks: Processes that share the examples of a batch. Each is called with the whole of it,
            and takes the same step along the sum of their gradients.
        gradients: Evaluations of the batch gradient so far; some optimizers take several an update.
            One with its graph counts twice: the Hessian product that it is for costs as much again.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: LRScheduler | None = None
    micro_batch_size: int | None = None
    clip_norm: float | None = None
    autocast: bool = False
    ranks: Ranks = ALONE
    gradients: int = 0
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = trainable(self.model)

    def check(self, batch_size: int) -> None:
        """Raise a UserError if batches of this size cannot be split without changing the loss."""
        small = self.micro_batch_size is not None and self.micro_batch_size < batch_size
        if small and any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            raise UserError(
                f"micro_batch_size={self.micro_batch_size} below the batch of {batch_size} would "
                "change what batch "
                "norm computes: say model.norm=group or none, a smaller batch_size, or "
                "micro_batch_size=null"
            )

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Update on one batch; return its mean loss before the update, detached, on the device."""
        first: Tensor | None = None
        look(self.optimizer, self.model, inputs)

        def closure() -> Tensor:
            nonlocal first
            self.optimizer.zero_grad()
            if torch.is_grad_enabled() and not self._keeps_graph:
                loss = self._backward(inputs, targets)
            else:  # torch's own optimizers enable gradients for the closure, not every other does
                with torch.enable_grad(), self._attention():
                    loss = self._backward(inputs, targets)
            if self.clip_norm is not None:
                self._clip(self.clip_norm)
            self.gradients += 1 + self._keeps_graph
            if first is None:
                first = loss.detach()
            return loss

        self.optimizer.step(closure)  # type: ignore[arg-type]  # closures may return tensors
        if first is None:
            raise UserError(
                f"{type(self.optimizer).__name__}.step() never called the closure that it was given"
            )
        if self._keeps_graph:
            self._free_graph()
        if self.schedule is not None:
            self.schedule.step()
        return first

    def _free_graph(self) -> None:
        """Detach gradients: a graph that ends in p and is held by p.grad would never be freed."""
        for p in self.parameters:
            if p.grad is not None and p.grad.requires_grad:
                p.grad = p.grad.detach()

    @property
    def _keeps_graph(self) -> bool:
        return bool(getattr(self.optimizer, "create_graph", False))

    def _backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add the gradient of the mean loss over the batch to `.grad`, and return that loss."""
        if self.ranks.size > 1:
            mine = self.ranks.shard(len(inputs))
            return self._added_up(self._add_share(inputs[mine], targets[mine], len(inputs)))
        size = self.micro_batch_size
        if size is None or size >= len(inputs):
            loss = self._mean_loss(inputs, targets)
            self._differentiate(loss)
            return loss
        return self._add_share(inputs, targets, len(inputs))

    def _add_share(self, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """Add these examples' share of the gradient of a mean over `count`; return the loss's."""
        size = self.micro_batch_size or count
        total = torch.zeros((), device=inputs.device, dtype=self.parameters[0].dtype)
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            loss = self._mean_loss(x, y) * (len(x) / count)
            self._differentiate(loss)
            total += loss.detach()
        return total

    def _added_up(self, loss: Tensor) -> Tensor:
        """Put the sum over processes into `.grad`, and return that of the loss."""
        has_gradient = loss.new_tensor([float(p.grad is not None) for p in self.parameters])
        sums = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.ranks.add_up([loss, has_gradient, *sums])
        for p, total, held in zip(self.parameters, sums, has_gradient, strict=True):
            if p.grad is None and held > 0:  # other examples than this process's depend on it
                p.grad = total
        return loss

    def _attention(self) -> AbstractContextManager[None]:
        """Fused attention has no second derivative."""
        return sdpa_kernel(SDPBackend.MATH) if self._keeps_graph else nullcontext()

    def _clip(self, largest: float) -> None:
        if not self._keeps_graph:
            nn.utils.clip_grad_norm_(self.parameters, largest)
            return
        held = [p for p in self.parameters if p.grad is not None]
        before = [p.grad.detach().clone() for p in held if p.grad is not None]
        # as clip_grad_norm_ has it
        scale = (largest / (nn.utils.get_total_norm(before) + 1e-6)).clamp(max=1)
        for p in held:
            assert p.grad is not None
            # what is differentiated is the clipped gradient, at a fixed scale
            p.grad = p.grad * scale

    def _differentiate(self, loss: Tensor) -> None:
        if not self._keeps_graph:
            loss.backward()
            return
        gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        for p, g in zip(self.parameters, gradients, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g

    def _mean_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if not self.autocast:
            return self.loss(self.model(inputs), targets)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            outputs = self.model(inputs)
        return self.loss(outputs.float(), targets)
