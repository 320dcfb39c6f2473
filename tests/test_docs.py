"""Pages that are made from code are what the code says."""

from docs.build import TABLE, render


def test_the_committed_table_is_current() -> None:
    assert TABLE.read_text() == render(), "say python -m docs.build"
