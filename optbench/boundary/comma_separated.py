"""Tables as comma-separated text, each written the same way."""

import csv
import io
from collections.abc import Iterable, Sequence


def comma_separated(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the heads and the rows, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()
