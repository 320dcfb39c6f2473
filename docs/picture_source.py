"""Which tables a committed picture is of: `NAME.png` is of `NAME.csv` and every `NAME-*.csv`.

The picture carries their digest, and a test holds it to that.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "images"
SOURCE = "sha256 of the table"


def tables_of(picture: Path) -> list[Path]:
    """The tables beside a picture that it is of."""
    name = picture.stem
    return [picture.with_suffix(".csv"), *sorted(picture.parent.glob(f"{name}-*.csv"))]


def digest(*tables: Path) -> str:
    """SHA-256 of the tables, one after the other."""
    return hashlib.sha256(b"".join(table.read_bytes() for table in tables)).hexdigest()


def drawn_from(picture: Path) -> str:
    """The digest that a picture says it is of."""
    from PIL import Image

    with Image.open(picture) as image:
        return str(image.info.get(SOURCE, ""))


def is_current(picture: Path) -> bool:
    """Whether a picture says that it is of the tables beside it."""
    return drawn_from(picture) == digest(*tables_of(picture))
