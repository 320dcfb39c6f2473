"""The verdict of a study as JSON and as a page: everything on it is computed or declared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optbench.boundary.counting import counted
from optbench.studies.frame import REFUTED, SUPPORTED, UNDECIDED, Declaration, Finding

PAGE = "verdict.md"
Confusion = Mapping[str, Mapping[str, Mapping[str, int]]]


def content(
    name: str,
    declaration: Declaration,
    findings: Sequence[Finding],
    confusion: Confusion,
    figures: Sequence[str],
    history: str,
    command: str,
    rows: int,
) -> dict[str, Any]:
    """Everything that a page says, as plain data."""
    by_name = {finding.hypothesis: finding for finding in findings}
    return {
        "study": name,
        "title": declaration.title,
        "direction": declaration.direction,
        "question": declaration.question,
        "protocol": declaration.protocol,
        "controls": declaration.controls,
        "not_shown": declaration.not_shown,
        "errata": list(declaration.errata),
        "level": declaration.level,
        "rows": rows,
        "declared": history,
        "command": command,
        "figures": list(figures),
        "hypotheses": [
            asdict(hypothesis)
            | _told(by_name[hypothesis.name])
            | {"planted": confusion.get(hypothesis.name, {})}
            for hypothesis in declaration.hypotheses
        ],
    }


def _told(finding: Finding) -> dict[str, Any]:
    estimate = finding.estimate
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {
        **{key: value if math.isfinite(value) else None for key, value in ends.items()},
        "verdict": finding.verdict,
        "n": finding.n,
        "why": finding.why,
    }


def render(verdict: Mapping[str, Any]) -> str:
    """The page, as Markdown."""
    lines = [
        f"# {verdict['title']}",
        "",
        f"Direction {verdict['direction']}: {verdict['question']}",
        "",
        "| hypothesis | verdict | estimate | interval | smallest effect | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(h) for h in verdict["hypotheses"]]
    lines += ["", f"Intervals of {verdict['level']:.1%}: 95 % for all primary hypotheses together."]
    for figure in verdict["figures"]:
        lines += ["", f"![{figure}]({figure}.png)"]
    for h in verdict["hypotheses"]:
        lines += ["", *_hypothesis(h)]
    lines += [
        "",
        "## How it was done",
        "",
        verdict["protocol"],
        "",
        f"Controls: {verdict['controls']}",
        "",
        f"What it does not show: {verdict['not_shown']}",
        "",
        *_errata(verdict.get("errata", ())),
        f"{verdict['declared']} {counted(verdict['rows'], 'row')} in table.csv. Again: "
        f"`{verdict['command']}`",
        "",
    ]
    return "\n".join(lines)


def _errata(errata: Sequence[str]) -> list[str]:
    if not errata:
        return []
    told = [f"- {sentence}" for sentence in errata]
    return ["Wrong in the declaration, said after it and no part of it:", "", *told, ""]


def _row(h: Mapping[str, Any]) -> str:
    return (
        f"| {h['claim']} | **{h['verdict']}** | {number(h['value'])} | "
        f"{number(h['low'])} to {number(h['high'])} | "
        f"{'+' if h['sign'] > 0 else '−'}{h['sesoi']:g} | {h['n']} |"
    )


def _hypothesis(h: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## {h['name']}: {h['verdict']}",
        "",
        f"Claim: {h['claim']}",
        "",
        f"Statistic: {h['statistic']}. Supported if its interval lies beyond "
        f"{'+' if h['sign'] > 0 else '−'}{h['sesoi']:g}, refuted if it lies within "
        f"±{h['sesoi']:g} or beyond the other end.",
        "",
        f"Seen: {number(h['value'])} [{number(h['low'])}, {number(h['high'])}], n = {h['n']}."
        + (f" {h['why']}" if h["why"] else ""),
    ]
    if h["prior"]:
        lines += ["", f"Before: {h['prior']}"]
    if h["overturned_by"]:
        lines += ["", f"What would overturn it: {h['overturned_by']}"]
    if h["planted"]:
        lines += ["", "The rule on planted worlds:", "", *_confusion(h["planted"])]
    return lines


def _confusion(planted: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [
        "| world | supported | refuted | undecided |",
        "| --- | --- | --- | --- |",
    ]
    for world, counts in planted.items():
        cells = (str(counts.get(name, 0)) for name in (SUPPORTED, REFUTED, UNDECIDED))
        lines.append(f"| {world} | {' | '.join(cells)} |")
    return lines


def number(value: float | None) -> str:
    """Return a number as a page shows it; a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"
