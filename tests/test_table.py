"""The committed table is what its YAMLs and timings say."""

from optbench.table import TABLE, render


def test_the_committed_table_is_current() -> None:
    assert TABLE.read_text() == render(), "say python -m optbench.table"
