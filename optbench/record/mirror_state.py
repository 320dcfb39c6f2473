"""What one mirror of a run folder leaves to the next: `wandb.json`."""

import json
import re
import shlex
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from optbench.record.folder import MIRROR_STATE, read_json, write_whole

STATE = MIRROR_STATE


@dataclass
class State:
    """What a mirror must know of the mirrors before it.

    A step is the only mark that lasts: a resumed run writes `timings.jsonl` again with other bytes.

    Attributes:
        id: W&B's name of the run.
        steps: Step of the last line sent, by series.
        rows: Rows of history sent; the next part counts on from there.
        offline: Folders for `wandb sync`, oldest first, relative to the run folder.
        url: Address of the run, None where it has none.
        why: Why the last part is offline.
        damaged: Lines that could not be sent.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    steps: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    offline: list[str] = field(default_factory=list)
    url: str | None = None
    why: str = ""
    damaged: int = 0

    @classmethod
    def read(cls, folder: Path) -> "State":
        """Return the state kept in `folder`; a new one if there is none that can be read."""
        try:
            state = cls(**(read_json(folder / STATE) or {}))
        except (TypeError, RecursionError):  # keys that no mirror wrote, or nested without end
            return cls()
        return state if state._is_sound() else cls()

    def _is_sound(self) -> bool:
        return (
            isinstance(self.id, str)
            and bool(re.fullmatch(r"\w{1,64}", self.id))
            and isinstance(self.steps, dict)
            and isinstance(self.offline, list)
            and all(
                type(number) is int for number in (self.rows, self.damaged, *self.steps.values())
            )
            and all(isinstance(text, str) for text in (self.why, self.url or "", *self.offline))
        )

    def write(self, folder: Path) -> None:
        """Write the state whole.

        Without room for it, sending goes on: a step may arrive twice, none is lost.
        """
        try:
            write_whole(folder / STATE, json.dumps(asdict(self)))
        except OSError as why:
            print(f"cannot write {STATE} ({why})", flush=True)

    def where(self, folder: Path) -> str:
        """Return a line on where the run is in W&B, and what is left to do."""
        parts = [folder / name for name in self.offline if (folder / name).exists()]
        sync = f"send it: wandb sync {shlex.join(map(str, parts))}"
        if not self.url:
            said = f"W&B: offline ({self.why}); {sync}"
        elif parts:
            said = f"W&B: {self.url}, but for a part recorded offline; {sync}"
        else:
            said = f"W&B: {self.url}"
        return said + (f"; {self.damaged} damaged lines were not sent" if self.damaged else "")
