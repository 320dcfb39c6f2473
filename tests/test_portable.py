import dataclasses
import io
import random
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from optbench.run.portable_state import MARK, NotPortableError, digest, from_portable, to_portable


def _through_a_file(state: Any) -> Any:
    content = io.BytesIO()
    torch.save(to_portable(state), content)
    content.seek(0)
    return from_portable(torch.load(content, weights_only=True))


@pytest.mark.parametrize(
    "value",
    [
        *(
            np.float64(0.1),
            np.float32(0.1),
            np.int64(-3),
            np.uint8(200),
            np.bool_(True),
            np.complex64(1j),
            np.str_("a"),
        ),
        *(
            np.str_("a"),
            None,
            True,
            3,
            2**200,
            0.1,
            1j,
            "zoë",
            b"x",
            b"",
            bytearray(b"x"),
            bytearray(),
            torch.float32,
            torch.Size([1]),
        ),
        *(
            (1, (2.0, "x")),
            [1, [None]],
            {1, 2},
            frozenset({"a"}),
            Counter("aab"),
            OrderedDict(b=1, a=2),
        ),
        *(
            {"a": {0: np.float64(2.0)}},
            {(1, 2): [np.int32(1)]},
            random.Random(0).getstate(),
            float("inf"),
        ),
    ],
    ids=repr,
)
def test_what_is_held_comes_back_with_its_type(value: Any) -> None:
    back = _through_a_file({"x": value})["x"]
    assert type(back) is type(value) and back == value


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u4", "?", "c16", ">f8", "U3"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_arrays_come_back_bit_for_bit_and_can_be_written_to(
    dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    back = _through_a_file([array])[0]
    assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)
    assert back.flags.writeable


def test_numpys_generator_and_a_deque_go_on_where_they_were() -> None:
    state: Any = np.random.RandomState(3).get_state()
    back = _through_a_file(state)
    assert back[0] == state[0] and np.array_equal(back[1], state[1]) and back[2:] == state[2:]
    queue = _through_a_file(deque([torch.ones(2), 3], maxlen=2))
    assert queue.maxlen == 2 and torch.equal(queue[0], torch.ones(2)) and queue[1] == 3


@dataclasses.dataclass
class _Momentum:
    value: float


_Pair = namedtuple("_Pair", "a b")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (_Momentum(1.0), "tests.test_portable._Momentum"),
        (_Pair(1, 2), "tests.test_portable._Pair"),
        (len, "builtins.builtin_function_or_method"),
        (random.Random(0), "random.Random"),
        (np.array([None]), "numpy.ndarray of object"),
        ({np.int64(1): 2}, "a key of optimizer.state.0.h, np.int64(1), is a numpy.int64"),
    ],
)
def test_what_cannot_be_held_is_named_with_its_place(value: Any, named: str) -> None:
    with pytest.raises(NotPortableError) as why:
        to_portable({"optimizer": {"state": {0: {"h": value}}}})
    assert named in str(why.value) and "optimizer.state.0.h" in str(why.value)


def test_what_needs_no_mark_stays_the_same_object_and_so_shared() -> None:
    tensor = torch.ones(3)
    state = {"a": [tensor, (1, tensor)], "b": OrderedDict(x=tensor)}
    assert to_portable(state) is state
    marked = to_portable({"a": state["a"], "n": np.float32(1)})
    assert marked["a"] is state["a"] and marked["n"][MARK] == "scalar"


def test_a_mark_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no 'eval'"):
        from_portable({MARK: "eval", "items": []})
    with pytest.raises(ValueError, match="no array of object"):
        from_portable({MARK: "array", "dtype": "O", "bits": torch.zeros(0), "shape": ()})


def test_the_digest_sees_every_type_key_value_shape_and_bit() -> None:
    states: list[Any] = [
        *(
            {},
            [],
            (),
            None,
            0,
            False,
            0.0,
            -0.0,
            "",
            b"",
            {"a": 1},
            {"b": 1},
            {"a": 1.0},
            [1, [2]],
            [[1], 2],
        ),
        *(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.tensor([0.0, -0.0])),
        *(
            torch.zeros(2).bfloat16(),
            np.float32(0),
            np.float64(0),
            np.zeros(1),
            torch.zeros(0),
            torch.zeros(()),
        ),
        {"a": torch.zeros(2)},
    ]
    assert len({digest(state) for state in states}) == len(states)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(
        torch.arange(6).reshape(2, 3).T.contiguous()
    )
