"""One step of training as a map of weights and optimizer state, and its derivative."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from optbench.curvature.errors import MeasurementError
from optbench.curvature.isolation import differentiable, kept_rng, seed_globals
from optbench.curvature.loss_state import kept_state
from optbench.dynamics.optimizer_copy import copied, tensors
from optbench.dynamics.optimizer_options import torch_attributes
from optbench.optimizers.looking import look
from optbench.optimizers.nested import nested

RELATIVE_STEP = 1e-4
"""Step of central differences, in units of the present motion; its error is of second order."""

LEAST_MOTION = 1e-5
"""Least unit of a weight's motion, in sizes of the weights: below, rounding is all there is."""

Criterion = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Slot:
    """A place in the optimizer (or the model) that holds real numbers of the map's state.

    Attributes:
        table: Dict or list that holds them.
        key: Where.
        name: What it is called there, such as "exp_avg"; "weight" for a parameter.
        size: How many numbers.
    """

    table: Any
    key: Any
    name: str
    size: int

    def read(self) -> Tensor:
        """The numbers now, flat."""
        value = self.table[self.key]
        if not isinstance(value, Tensor):
            return torch.tensor([value], dtype=torch.float64)
        return value.detach().reshape(-1).double().cpu()

    @torch.no_grad()
    def write(self, numbers: Tensor) -> None:
        """Put numbers there."""
        value = self.table[self.key]
        if isinstance(value, Tensor):
            value.copy_(numbers.to(value).reshape(value.shape))
        else:
            self.table[self.key] = float(numbers)


class TrainingMap:
    """F: (w, s) ↦ (w', s'), the weights and the optimizer's state after one more update.

    A float64 copy of model, optimizer and data takes the steps, whatever the optimizer's class; the
    original is only read. The state s is every real number in the optimizer that the weights reach
    within a few steps. What they do not reach (a count of steps, a bias correction, a weight of a
    schedule) is held: it starts each evaluation from its present value and moves as it does. So is
    what is no real number. Nothing is lost by that: the Jacobian is block triangular, and what is
    held has eigenvalues of its own. Random numbers are the same in every evaluation.

    Coordinates are scaled by the present motion, x = D y with D diagonal, which leaves the
    eigenvalues as they are and makes one step of differences fit all:

    - weights: the size of the coming update (root mean square);
    - what is nowhere negative (second moments): each entry itself, so that it stays positive; one
      that is 0 is held;
    - other state: its size, over all tensors of that name.

    Where the step asks for a coarser precision (Muon for bfloat16) it has float64. Gradients are
    not clipped.

    Args:
        model: Model, in the modes that it trains in.
        criterion: (outputs, targets) → the mean loss.
        data: (inputs, targets) that every step takes.
        optimizer: Any, with its state. It has to have taken a step if it keeps state.

    Raises:
        MeasurementError: If the copy cannot be made or its layout changes in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: tuple[Tensor, Any],
        optimizer: Optimizer,
    ) -> None:
        self._model, self._optimizer = copied(model, optimizer, torch.float64)
        self._data = tuple(
            x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in data
        )
        self._criterion = criterion
        self._device = next(model.parameters()).device
        self._parts = list(nested(self._optimizer))
        self._rate = 1.0
        roots: list[Any] = [vars(part) for part in self._parts]
        roots += [module._buffers for module in self._model.modules()]
        self._restore = _remembered(roots, list(self._model.parameters()))
        self.slots = self._candidates()
        reached = list(zip(self.slots, self._split(self._reached()), strict=True))
        self.slots = [slot for slot, live in reached if bool(live.any())]
        self._origin, self._image = self._run(None)
        scales = self._scales() * torch.cat([live for _, live in reached if bool(live.any())])
        self._moving = scales.nonzero()[:, 0]
        self.scale = scales[self._moving]

    @property
    def size(self) -> int:
        """Numbers in (w, s), those that are held left out."""
        return len(self._moving)

    def product(self, y: Tensor, step: float = RELATIVE_STEP, updates: int = 1) -> Tensor:
        """D⁻¹ J D y by a central difference, an error of O(step²) and of rounding/step.

        Args:
            y: Flat, shape (size,), in scaled coordinates.
            step: ‖change‖ in scaled coordinates.
            updates: J is of the map of so many updates, along the orbit from here.
        """
        h = step / float(y.norm())
        change = torch.zeros_like(self._origin)
        change[self._moving] = h * self.scale * y
        ahead, behind = (self._run(self._origin + sign * change, updates)[1] for sign in (1, -1))
        return (ahead - behind)[self._moving] / (2 * h * self.scale)

    @property
    def origin(self) -> Tensor:
        """The present state (w, s), shape (size,), unscaled."""
        return self._origin[self._moving]

    def image(self, x: Tensor, updates: int = 1) -> Tensor:
        """F(x), or F applied several times: the state after so many updates from (w, s) = x."""
        start = self._origin.clone()
        start[self._moving] = x
        return self._run(start, updates)[1][self._moving]

    def copies(self, x: Tensor) -> tuple[nn.Module, Optimizer]:
        """The float64 copies of model and optimizer in the state (w, s) = x.

        They are the map's own, and are written over where it is evaluated next.
        """
        start = self._origin.clone()
        start[self._moving] = x
        self._run(start, updates=0)
        return self._model, self._optimizer

    @contextlib.contextmanager
    def at_rate(self, factor: float) -> Iterator[None]:
        """Context in which every group's learning rate is this many times the present one."""
        before, self._rate = self._rate, factor
        try:
            yield
        finally:
            self._rate = before

    def names(self) -> list[str]:
        """What each number is called in the optimizer's state, or "weight"."""
        every = [slot.name for slot in self.slots for _ in range(slot.size)]
        return [every[i] for i in self._moving.tolist()]

    def _run(self, x: Tensor | None, updates: int = 1) -> tuple[Tensor, Tensor]:
        """Start and end of the map, from numbers x in the slots or from what is there."""
        self._restore()
        if self._rate != 1:
            for group in _groups(self._parts):
                group["lr"] = group["lr"] * self._rate
        if x is not None:
            for slot, piece in zip(self.slots, self._split(x), strict=True):
                slot.write(piece)
        start = _read(self.slots)
        with (
            kept_rng(self._device),
            differentiable(self._device),
            kept_state(self._criterion),
            _in_double_precision(),
        ):
            seed_globals(self._device, 0)
            try:
                for _ in range(updates):
                    self._step()
            except (RuntimeError, TypeError, ValueError) as why:
                raise MeasurementError(f"a step of the copy in float64 fails: {why}") from why
        try:
            end = _read(self.slots)
        except (KeyError, IndexError) as why:
            raise MeasurementError("the optimizer's state changes its layout in a step") from why
        if len(end) != len(start):
            raise MeasurementError("the optimizer's state changes its layout in a step")
        if not bool(end.isfinite().all()):
            raise MeasurementError("a step near the present state is not finite")
        return start, end

    def _step(self) -> None:
        inputs, targets = self._data

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            with torch.enable_grad():
                loss = self._criterion(self._model(inputs), targets)
                self._differentiate(loss)
            return loss

        look(self._optimizer, self._model, self._data[0])
        self._optimizer.step(closure)  # type: ignore[arg-type]

    def _differentiate(self, loss: Tensor) -> None:
        if not getattr(self._optimizer, "create_graph", False):
            loss.backward()
            return
        held = [p for p in self._model.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
        for p, slope in zip(held, slopes, strict=True):
            p.grad = slope

    def _candidates(self) -> list[Slot]:
        """Trained weights, then every other real number in the optimizer and its parts."""
        own = {id(p) for part in self._parts for p in _params(part)}
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        storages = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        moved = [p for p in parameters if id(p) in own or self._is_viewed(p)]
        found = [Slot([p], 0, "weight", p.numel()) for p in moved]
        seen = set[int]()
        for part in self._parts:
            for group in part.param_groups:
                found += _slots({k: v for k, v in group.items() if k != "params"}, group, seen)
            found += [s for state in part.state.values() for s in _slots(state, state, seen)]
            rest = {k: v for k, v in vars(part).items() if k not in torch_attributes()}
            found += _slots(rest, vars(part), seen)
        return [s for s in found if s.name == "weight" or not _aliases(s, storages)]

    def _is_viewed(self, p: nn.Parameter) -> bool:
        pointers = {q.untyped_storage().data_ptr() for part in self._parts for q in _params(part)}
        return p.untyped_storage().data_ptr() in pointers

    def _reached(self) -> Tensor:
        """Which numbers are weights, or state that a change of the weights changes; by trying it.

        A number that nothing reaches, such as the averages of an input that is always 0, is held.
        """
        origin, image = self._run(None)
        live = torch.cat([torch.full((s.size,), s.name == "weight") for s in self.slots])
        while True:
            _, other = self._run(self._shaken(origin, live))
            now = live | (other != image)
            if torch.equal(now, live):
                return live
            live = now

    def _shaken(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Numbers x with noise of 1e-4 of their size where chosen; no sign changes in s."""
        g = torch.Generator().manual_seed(0)
        noise = 1e-4 * torch.randn(len(x), generator=g, dtype=torch.float64)
        units = [
            torch.full_like(piece, _rms(piece) or 1.0) if slot.name == "weight" else piece
            for slot, piece in zip(self.slots, self._split(x), strict=True)
        ]
        return x + torch.where(chosen, torch.cat(units) * noise, 0.0)

    def _scales(self) -> Tensor:
        """The diagonal of D."""
        before, after = self._split(self._origin), self._split(self._image)
        floor = LEAST_MOTION * (_rms(self._of("weight", before)) or 1.0)
        motion = max(_rms(self._of("weight", after) - self._of("weight", before)), floor)
        g = torch.Generator().manual_seed(1)
        noise = torch.randn(len(self._origin), generator=g, dtype=torch.float64)
        weights = torch.cat([torch.full((s.size,), s.name == "weight") for s in self.slots])
        # how far one unit of motion of the weights moves the state
        _, moved = self._run(torch.where(weights, self._origin + motion * noise, self._origin))
        responses = self._split(moved - self._image)
        units: dict[str, float | None] = {"weight": motion}
        for name in {slot.name for slot in self.slots} - {"weight"}:
            now = self._of(name, before)
            positive = bool((now >= 0).all()) and bool((now > 0).any())
            units[name] = None if positive else _unit(now, self._of(name, responses))
        return torch.cat(
            [
                piece.clone()
                if (unit := units[slot.name]) is None
                else torch.full_like(piece, unit)
                for slot, piece in zip(self.slots, before, strict=True)
            ]
        )

    def _of(self, name: str, pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [x for slot, x in zip(self.slots, pieces, strict=True) if slot.name == name]
        )

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        return torch.split(x, [slot.size for slot in self.slots])


def _unit(now: Tensor, response: Tensor) -> float:
    """Unit of signed state: its size, unless the weights' motion moves it by far less.

    A random direction meets the mean curvature only, the largest is about a hundred times that.
    """
    sizes = [size for size in (_rms(now), 100 * _rms(response)) if size > 0]
    return min(sizes, default=1.0)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _read(slots: Sequence[Slot]) -> Tensor:
    return torch.cat([slot.read() for slot in slots])


def _groups(parts: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Groups with a learning rate, each once: a wrapper's are its base's."""
    every = {id(group): group for part in parts for group in part.param_groups if "lr" in group}
    return list(every.values())


def _params(part: Optimizer) -> Iterator[Tensor]:
    for group in part.param_groups:
        yield from group["params"]


def _slots(value: Any, table: Any, seen: set[int]) -> list[Slot]:
    """Places of real numbers in nested dicts and lists; each tensor and each table once."""
    if id(table) in seen or not isinstance(value, dict | list):
        return []
    seen.add(id(table))
    found: list[Slot] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, Tensor):
            real = inner.is_floating_point() and bool(inner.isfinite().all())
            if real and id(inner) not in seen:
                seen.add(id(inner))
                found.append(Slot(table, key, str(key), inner.numel()))
        elif isinstance(inner, float) and math.isfinite(inner):
            found.append(Slot(table, key, str(key), 1))
        elif isinstance(inner, dict | list):
            nested_ones = _slots(inner, inner, seen)
            # a list's places are called as the list is
            found += [
                Slot(s.table, s.key, str(key), s.size) if isinstance(inner, list) else s
                for s in nested_ones
            ]
    return found


def _aliases(slot: Slot, storages: set[int]) -> bool:
    value = slot.table[slot.key]
    return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in storages


def _remembered(roots: Sequence[Any], more: Sequence[Tensor]) -> Callable[[], None]:
    """A function that puts every tensor, dict and list below the roots back as it is now."""
    tables: list[tuple[Any, Any]] = []
    _containers(list(roots), tables, set())
    kept = [(t, t.data, t.detach().clone()) for t in [*more, *tensors(list(roots))]]

    @torch.no_grad()
    def restore() -> None:
        for table, content in tables:
            if isinstance(table, dict):
                table.clear()
                table.update(content)
            else:
                table[:] = content
        for t, storage, numbers in kept:
            t.grad = None
            t.data = storage
            t.data.copy_(numbers)

    return restore


def _containers(value: Any, found: list[tuple[Any, Any]], seen: set[int]) -> None:
    if id(value) in seen or not isinstance(value, dict | list | tuple):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        found.append((value, dict(value)))
        inner: Any = list(value.values())
    else:
        inner = list(value)
        if isinstance(value, list):
            found.append((value, inner))
    for each in inner:
        _containers(each, found, seen)


@contextlib.contextmanager
def _in_double_precision() -> Iterator[None]:
    """Context in which a step computes in float64, also where it asks for less."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _NoCoarserType():
            yield
    finally:
        torch.set_default_dtype(before)


COARSER = frozenset({torch.bfloat16, torch.float16, torch.float32})
CASTS = (Tensor.bfloat16, Tensor.half, Tensor.float)


class _NoCoarserType(TorchFunctionMode):
    """Reads float64 wherever a step says bfloat16 (Muon), float16 or float32 (SOAP).

    A cast stays a copy, since what comes after it may write in place.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function with float64 for a coarser type."""
        if func in CASTS:
            return args[0].double().clone()
        asked = kwargs or {}
        coarser = [x for x in (*args, *asked.values()) if isinstance(x, torch.dtype)]
        if not any(x in COARSER for x in coarser):
            return func(*args, **asked)
        args = tuple(_fine(x) for x in args)
        result = func(*args, **{key: _fine(x) for key, x in asked.items()})
        return result.clone() if args and result is args[0] else result


def _fine(x: Any) -> Any:
    return torch.float64 if isinstance(x, torch.dtype) and x in COARSER else x
