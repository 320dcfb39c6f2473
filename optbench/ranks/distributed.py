"""Processes that torchrun has started for one run, over torch.distributed."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from optbench.boundary.counting import counted
from optbench.errors import MachineError, UserError, mark_origin, who_ended
from optbench.processes import Place, place
from optbench.ranks.alone import ALONE, Item, Ranks, Result
from optbench.ranks.meeting import first_line, meet

DIMENSIONS = 8  # most of a tensor that one process computes for the others
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)


_groups = itertools.count()  # of this process so far: each has its own keys in the store


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Context with the processes of this run; `ALONE` where torchrun has not started several.

    Sums travel over gloo on a CPU and over NCCL on GPUs. Each process sees one GPU, the one of its
    number on its machine, as `cuda`.

    Args:
        device: The run's, as configured.

    Raises:
        UserError: If the processes cannot compute on that device; if another one has failed.
        MachineError: If they do not find each other.
    """
    here = place()
    if here.size == 1:
        yield ALONE
        return
    _take_own_gpu(device, here)
    _import_what_keeps_a_group()
    from torch.distributed.distributed_c10d import PrefixStore  # not every build of torch has it

    with _heard():
        meeting = meet(here)
        meeting.gather()
        store = PrefixStore(f"group{next(_groups)}", meeting.store)
        dist.init_process_group("gloo", store=store, rank=here.rank, world_size=here.size)
    gpus = None
    try:
        gpus = _gpus(device, here)
        yield Together(here, gpus)
    except BaseException as error:
        meeting.stays = gpus is None  # NCCL waits for who has gone; gloo waits for nobody
        try:
            meeting.leave_word(error)
            _clear_frames(error)  # which hold the group
        finally:
            if gpus is None:
                dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold; its traceback can still be printed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _import_what_keeps_a_group() -> None:
    """Import before there is a group what makes the group of that moment a default argument.

    Imported later, by `torch._dynamo`, it keeps the destroyed group and its threads. One that lets
    go of a tensor while the interpreter is taken apart aborts the process (PyTorch, issue 190489):
    a run that is done would have failed.
    """
    importlib.import_module("torch.distributed.nn.functional")


def _take_own_gpu(device: str, here: Place) -> None:
    """Let this process see its own GPU alone; CUDA reads this when it is first used."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"device={device} is one device, and there are {counted(here.size, 'process')}: say "
            "device=cuda, and each takes the GPU of its number; or device=cpu"
        )
    if device != "cpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = visible.split(",") if visible is not None else None
        own = here.local_rank if numbers is None else (numbers + [""] * here.size)[here.local_rank]
        os.environ["CUDA_VISIBLE_DEVICES"] = str(own)


def _gpus(device: str, here: Place) -> dist.ProcessGroup | None:
    """The group for GPUs if every process has one; None if none has, or device=cpu.

    Raises:
        UserError: If some have one, or if it is Apple's.
    """
    if device == "cpu":
        return None
    if device == "auto" and torch.backends.mps.is_available():
        raise UserError("torch.distributed does not run on mps: say device=cpu")
    has = torch.cuda.is_available()
    count = torch.tensor([float(has)])
    with _heard():
        dist.all_reduce(count)
    if 0 < count < here.size:
        raise UserError(
            f"{counted(int(count), 'GPU')} for {counted(here.size, 'process')}: each needs its "
            "own; say device=cpu, or start as many processes as there are GPUs"
        )
    return dist.new_group(backend="nccl") if has else None


class Together(Ranks):
    """Several processes, each called with the same arguments in the same order.

    Args:
        here: Which of them this is.
        gpus: Group that adds up tensors on GPUs; None: there are none.
    """

    def __init__(self, here: Place, gpus: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self._gpus = here.rank, here.size, gpus
        self._fates = 0  # contexts of one fate that this process is in

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks`. Tensors of one precision travel as one; bytes: 2(R − 1)/R of theirs."""
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        # what may fail, for want of memory, comes before they meet
        flats = [
            alike[0]
            if len(alike) == 1 and alike[0].is_contiguous()
            else torch.cat([tensor.reshape(-1) for tensor in alike])
            for alike in kinds.values()
        ]
        self._meet()
        for flat, alike in zip(flats, kinds.values(), strict=True):
            self._add_up(flat)
            if flat is not alike[0]:
                for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def _add_up(self, tensor: Tensor) -> None:
        with _heard():
            dist.all_reduce(tensor, group=self._group(tensor))

    def _group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self._gpus if tensor.is_cuda else None

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """See `Ranks`."""
        self._meet()
        total = torch.tensor(numbers, dtype=torch.float64)
        self._add_up(total)
        return tuple(total.tolist())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See `Ranks`."""
        return tuple(number > 0 for number in self.sums(*map(float, flags)))

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """See `Ranks`; item i is the work of process i mod R.

        Results are passed on if they are tensors. Else, and where one fails, every process computes
        those of this round itself.
        """
        for group in _rounds(items, self.size):
            own: object = None
            if self.rank < len(group):
                # It fails below, in all processes alike.
                with contextlib.suppress(Exception):
                    own = function(group[self.rank])
            results = self._passed_on(own, len(group))
            for i, item in enumerate(group):
                yield item, function(item) if results is None else results[i]  # type: ignore[misc]

    def _passed_on(self, own: object, count: int) -> list[Tensor] | None:
        """The results of `count` processes; None if one is no tensor that can be passed on."""
        self._meet()
        shapes = torch.zeros((self.size, DIMENSIONS + 3), dtype=torch.int64)
        shapes[self.rank] = _shape_of(own)
        self._add_up(shapes)
        if not bool((shapes[:count, 0] > 0).all()):
            return None
        device = own.device if isinstance(own, Tensor) else None
        results = []
        for source, (_, dtype, ndim, *shape) in enumerate(shapes[:count].tolist()):
            if source == self.rank and isinstance(own, Tensor):
                result = own.detach().contiguous()
            else:
                device = device or self._device
                result = torch.empty(shape[:ndim], dtype=DTYPES[dtype], device=device)
            with _heard():
                dist.broadcast(result, source, group=self._group(result))
            results.append(result)
        return results

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu" if self._gpus is None else "cuda")

    def tell(self, content: bytes) -> bytes:
        """See `Ranks`."""
        self._meet()
        return self._said_by(0, content)

    def _said_by(self, source: int, content: bytes) -> bytes:
        """What one process has to say."""
        speaks = self.rank == source
        length = torch.tensor([len(content) if speaks else 0])
        self._add_up(length)
        if not length:
            return b""
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8) if speaks else None
        told = torch.empty(int(length), dtype=torch.uint8) if held is None else held
        with _heard():
            dist.broadcast(told, source)
        return told.numpy().tobytes()

    @contextlib.contextmanager
    def one_fate(self) -> Iterator[None]:
        """See `Ranks`. In it, each sum costs one of R numbers more, as does its end."""
        self._fates += 1
        try:
            try:
                yield
            except SystemExit as ended:
                error = UserError(who_ended(ended))
                error.__cause__ = ended
                self._meet(error)
            except Exception as why:
                self._meet(why)
            else:
                self._meet()
        except _Brought as brought:
            if brought.depth < self._fates:
                raise
            raise brought.error from brought.error.__cause__
        finally:
            self._fates -= 1

    def _meet(self, error: Exception | None = None) -> None:
        """Raise in all processes what one of them brings to where they meet.

        Of several errors it is that of the first process. Nothing to do outside of `one_fate`: a
        process that raises there ends, which the others hear of.
        """
        if not self._fates:
            return
        depths = torch.zeros(self.size, dtype=torch.int64)  # of the contexts that are being left
        depths[self.rank] = 0 if error is None else self._fates
        self._add_up(depths)
        failed = depths.nonzero().flatten().tolist()
        if not failed:
            return
        source = failed[0]
        depth = int(depths[failed].min())
        if error is not None and source == self.rank:
            own, content = _that_travels(error, source)
            self._said_by(source, content)
            raise _Brought(own, depth)
        raise _Brought(pickle.loads(self._said_by(source, b"")), depth)

    def check_same(self, tensors: Sequence[Tensor], what: str) -> None:
        """See `Ranks`. Compared is, of each tensor, the sum of its bits as whole numbers."""
        self._meet()
        marks = torch.stack([_bits(tensor).sum(dtype=torch.int64).cpu() for tensor in tensors])
        # max m = −max(−m) over processes if m is everywhere the same.
        both = torch.stack([marks, -marks])
        with _heard():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        if not torch.equal(both[0], -both[1]):
            raise MachineError(
                f"the processes of this run hold different {what}: they must run the same code on "
                "machines of one kind; the same command goes on from the last checkpoint"
            )


class _Brought(BaseException):
    """An error on its way to the context that all processes leave; nothing else may catch it."""

    def __init__(self, error: Exception, depth: int) -> None:
        super().__init__(error)
        self.error, self.depth = error, depth


def _that_travels(error: Exception, rank: int) -> tuple[Exception, bytes]:
    """The error and what is sent of it; another that says the same, if it cannot be sent."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        mark_origin(copy.with_traceback(error.__traceback__), rank)
        content = pickle.dumps(copy)
        pickle.loads(content)
        if not isinstance(error, StopIteration):  # no context can raise it
            return error, content
    except Exception:  # exceptions are anybody's
        pass
    line = " ".join(f"{type(error).__name__}: {error}".split())
    said = MachineError(f"process {rank} of this run failed: {line}")
    content = pickle.dumps(said)
    said.__cause__ = error
    return said, content


def _rounds(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in groups of `size`; the last may be smaller."""
    left = iter(items)
    while group := list(itertools.islice(left, size)):
        yield group


def _shape_of(result: object) -> Tensor:
    """Numbers (1, dtype, dimensions, shape …) of a tensor that can be passed on, else zeros."""
    numbers = torch.zeros(DIMENSIONS + 3, dtype=torch.int64)
    if not isinstance(result, Tensor) or result.layout != torch.strided:
        return numbers
    if result.dtype in DTYPES and result.ndim <= DIMENSIONS:
        about = [1, DTYPES.index(result.dtype), result.ndim, *result.shape]
        numbers[: len(about)] = torch.tensor(about)
    return numbers


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.detach().contiguous().view(_WHOLE[plain.element_size()])


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Context of a call that waits for the other processes.

    Raises:
        UserError: If one of them has failed, with what it says.
        MachineError: If one of them is no longer there.
    """
    try:
        yield
    except RuntimeError as why:
        meeting = meet(place())
        if (word := meeting.word_of_another()) is not None:
            raise word.error() from why
        meeting.lost = True
        # gloo begins with a file, and explains
        said = re.sub(r"^\[\S*\] ", "", first_line(why)).split(". ")[0]
        raise MachineError(
            f"a process of this run has ended or cannot be reached ({said}): the same command goes "
            "on from the last checkpoint"
        ) from why
