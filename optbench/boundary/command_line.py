"""What the commands beside the main job have in common: `--version`, and refusals in one line."""

import argparse
from typing import Any, NoReturn

from optbench import __version__
from optbench.boundary.files import printable

VERSION = f"optbench {__version__}"


class Parser(argparse.ArgumentParser):
    """An argument parser that knows the version, and quotes nothing that a terminal would act on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--version", action="version", version=VERSION)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line."""
        self.exit(2, f"optbench: {printable(message)}: {self.prog} --help says what there is\n")
