"""The page of the laboratory: its code runs, on fewer seeds than it shows."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "laboratory.md"


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    code = "\n".join(blocks)
    for shown, tried in (("range(10)", "range(2)"), ('"signum")', ")"), ("(1, 3)", "(3, 9)")):
        assert shown in code
        code = code.replace(shown, tried)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "<Run parity-mlp_relu-adam-seed3" in said and "took" in said
    assert "'with': 2, 'step': 'stacked'" in said
    assert re.search(r"sharpness GranulatedKendall\(value=-?[\d.]+", said)
