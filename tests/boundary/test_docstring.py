"""What docstrings say of arguments, in the forms that libraries write them."""

from typing import Annotated, Any

import pytest
import torch

from optbench.boundary.docstring import about, arguments, first_sentence


class _Options:
    """Options.

    Attributes:
        depth: How deep.
        width: How wide.
    """


class _Base:
    """A base.

    Args:
        lr: Rate of the base.
        eps (float, optional) : Added to the denominator (default: 1e-8).
    """


class _Derived(_Base):
    """Its first
    paragraph.

    Not this.

    Args:
        lr: Rate, over
            two lines.

            And a paragraph: with a colon.
        `momentum` (float, optional): See :math:`beta` of ``SGD``. Default: 0.9.

    Returns:
        nothing: at all.
    """


def _function(size: int, **options: Annotated[Any, _Options]) -> None:
    """Do it.

    Args:
        size: How large.
        depth: How deep here.
        options: The rest.
    """


def test_a_class_has_what_it_and_its_bases_say() -> None:
    assert about(_Derived) == "Its first paragraph."
    assert arguments(_Derived) == {
        "lr": "Rate, over two lines. And a paragraph: with a colon.",
        "momentum": "See `beta` of `SGD`.",
        "eps": "Added to the denominator.",
    }


def test_options_are_described_by_their_class_unless_the_function_does() -> None:
    found = arguments(_function)
    assert found["size"] == "How large."
    assert (found["depth"], found["width"]) == ("How deep here.", "How wide.")


def test_torchs_own_form_is_understood() -> None:
    found = arguments(torch.optim.RMSprop)
    assert found["alpha"].startswith("smoothing constant")
    assert found["centered"] and found["weight_decay"] and "default" not in found["lr"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("Half, e.g. This, of all. Two.", "Half, e.g. This, of all."),
        ("By Cui et al. (2019), of 0.5. `k`.", "By Cui et al. (2019), of 0.5."),
        ("", ""),
    ],
)
def test_the_first_sentence_ends_where_a_sentence_ends(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_no_docstring_says_nothing() -> None:
    assert arguments(lambda x: x) == {} and about(lambda x: x) == ""
