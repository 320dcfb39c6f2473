"""`python -m optbench.check TARGET`: what an optimizer, a task or a probe does, right or wrong.

A check is a function from its subject to a `Finding`; a family of checks is a file with a list of
them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "warn", "reported", "not tried", "excluded"]


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Attributes:
        verdict: `pass`; `fail`; `warn` for what may surprise; `reported` for what is neither right
            nor wrong; `not tried`, with the reason; `excluded` for a failure that the YAML's
            `about.excluded` gives a reason for.
        detail: What was found, in one line.
    """

    verdict: Verdict
    detail: str = ""


Check = Callable[[Any], Finding]


@dataclass(frozen=True)
class Row:
    """A finding, with the name of the check and the time that it took."""

    check: str
    verdict: Verdict
    detail: str
    seconds: float


def passed(ok: bool, detail: str = "") -> Finding:
    """`pass` or `fail`."""
    return Finding("pass" if ok else "fail", detail)


def run(checks: Sequence[Check], subject: Any, excluded: Mapping[str, str]) -> Iterator[Row]:
    """Yield a row per check; a check that raises has failed.

    Args:
        checks: In the order wanted; named by their functions.
        subject: What each is called with.
        excluded: Reasons, by name of check, for failures that are known.
    """
    for check in checks:
        start = time.perf_counter()
        try:
            found = check(subject)
        except Exception as error:  # a user's optimizer may raise anything
            found = Finding("fail", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        name = getattr(check, "__name__", "check").replace("_", " ")
        if found.verdict == "fail" and name in excluded:
            found = Finding("excluded", f"{excluded[name]} ({found.detail})")
        yield Row(name, found.verdict, found.detail, time.perf_counter() - start)
