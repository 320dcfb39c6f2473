"""What code that sums over examples asks of the processes that share them; here: of one alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ranks:
    """The processes of a run, seen from one of them; this class is a run of one process.

    Every process calls every method the same number of times, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes, R.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is process 0, which alone writes and prints."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process's part of `count` examples: ⌊r·count/R⌋ up to ⌊(r + 1)·count/R⌋."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes, the same bits in all of them."""

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over processes, in double precision."""
        return numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is up in any process."""
        return flags

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Pairs (item, function(item)) in order; each result is computed by one process."""
        for item in items:
            yield item, function(item)

    def tell(self, content: bytes) -> bytes:
        """What process 0 has to say; the other processes' content is ignored."""
        return content

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """Context in which an exception of one process is raised in all of them.

        Else the others would wait for that process in the next sum, or add to it what that process
        computes next. May hold further sums and contexts of this kind.
        """
        yield

    def check_same(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raise a MachineError unless all processes hold the same bits."""


ALONE = Ranks()
