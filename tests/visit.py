"""One page in a real browser, headless."""

from pathlib import Path
from typing import Any


class Visit:
    """One page in one window, with everything that it complained of or asked for."""

    def __init__(
        self, browser: Any, file: Path, width: int = 1200, scheme: str = "light", anchor: str = ""
    ) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda m: self.trouble.append(m.text) if m.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri() + anchor)

    def _dismiss(self, dialog: Any) -> None:
        self.trouble.append("a dialog was opened")
        dialog.dismiss()

    def column(self, table: str, index: int) -> list[str]:
        cells: list[str] = self.page.locator(
            f"#{table} tbody tr td:nth-child({index})"
        ).all_text_contents()
        return cells
