"""Texts as Hydra's overrides.

The name of a folder is never read as a number, a list or a sweep.
"""

import re
from pathlib import Path

from optbench.errors import UserError

MISSING = "???"
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_NO_TEXT = re.compile(r"[+-]?[\d_.]*(e[+-]?[\d_]*)?|[+-]?(inf|nan)|true|false|null", re.IGNORECASE)
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_QUOTE = re.compile(r"(\\*)('|\Z)")


_OPTIONAL = re.compile(r"(\+\+)?((probes\.\w+\.every|optimizer\.scale)=.*)", re.DOTALL)


def with_optional(word: str) -> str:
    """Let a probe's cadence, and the scale of an optimizer's rates, be given although no YAML does.

    Any other word stays as it is.
    """
    return _OPTIONAL.sub(r"++\2", word) if _OPTIONAL.fullmatch(word) else word


def as_given(word: str) -> str:
    """The word that `with_optional` was given."""
    return _OPTIONAL.sub(r"\2", word) if _OPTIONAL.fullmatch(word) else word


def quoted(text: str) -> str:
    r"""Return what Hydra reads as this text; the text itself where that is so already.

    Two readers come one after the other. OmegaConf takes `${` for an interpolation, unless an odd
    number of backslashes stands before it. Hydra ends a quoted value at the first quote that has an
    even number before it.

    Raises:
        UserError: For `???`, which OmegaConf takes for a missing value, however it is quoted.
    """
    if text == MISSING:
        raise UserError(f"no setting can be {MISSING}, which stands for a missing one")
    if _PLAIN.fullmatch(text) and not _NO_TEXT.fullmatch(text):
        return text
    literal = _INTERPOLATION.sub(r"\1\1\\${", text)
    return "'" + _QUOTE.sub(lambda quote: 2 * quote[1] + ("\\'" if quote[2] else ""), literal) + "'"


def quoted_path(path: str | Path) -> str:
    """Return what Hydra reads as this path: `quoted`, but for a folder that is called `???`."""
    return quoted(f"./{MISSING}" if str(path) == MISSING else str(path))
