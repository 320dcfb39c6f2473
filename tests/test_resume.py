"""What an interrupted or finished run is held against before it is gone on from, or stands for its command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optbench.record import folder as record
from optbench.record.folder import CHECKPOINT, METRICS, PROVENANCE, SUMMARY
from optbench.run.portable_state import digest
from tests import checkpoints
from tests.conftest import Command, Outcome

TINY = (
    *(
        "task=digits",
        "task.train_size=60",
        "model.widths=[4]",
        "batch_size=20",
        "probes=none",
        "log_every=1",
    ),
    *(
        "picture=false",
        "checkpoint_seconds=1e-9",
        "steps=8",
        "optimizer=custom",
        "optimizer.lr=0.1",
    ),
)
MINE = """
import os, random
import numpy as np
import torch
from torch.optim import Optimizer

class Mine(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.calls = 0

    def step(self, closure):
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                UPDATE
        number = state.get("count", 0)
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["count"] = number + 1
        if str(number) == os.environ.get("STOP_AT"):
            raise KeyboardInterrupt
        return loss
"""
PLAIN = "p.data -= group['lr'] * p.grad"
NUMPY_SCALAR = (
    "state['v'] = np.float32(0.9) * state.get('v', np.float32(0)) + np.float32(p.grad.norm()); "
    + ("p.data -= group['lr'] * p.grad / float(1 + state['v'])")
)
NUMPY_ARRAY = "state['m'] = 0.9 * state.get('m', np.zeros(tuple(p.shape))) + p.grad.numpy(); " + (
    "p.data -= group['lr'] * torch.from_numpy(state['m']).to(p)"
)
PRECISE = "state['m'] = 0.9 * state.get('m', torch.zeros_like(p).double()) + p.grad.double(); " + (
    "p.data -= group['lr'] * state['m'].to(p)"
)
NOISY = "p.data -= group['lr'] * random.random() * np.random.rand() * p.grad"
DATACLASS = "import fractions; state['h'] = fractions.Fraction(1, 3)"


def _write(folder: Path, name: str, update: str) -> str:
    (folder / f"{name}.py").write_text(MINE.replace("UPDATE", update))
    return f"optimizer._target_={name}.Mine"


def _until(optbench: Command, monkeypatch: pytest.MonkeyPatch, step: int, *words: str) -> Outcome:
    monkeypatch.setenv("STOP_AT", str(step))
    stopped = optbench(*words)
    monkeypatch.delenv("STOP_AT")
    assert stopped.code == 130, stopped.err
    return stopped


def _only(results: Path) -> Path:
    (folder,) = (results / "runs").iterdir()
    return folder


def _state(folder: Path) -> dict[str, Any]:
    state, passed_over = checkpoints.newest(folder)
    assert state is not None and not passed_over
    return state


@pytest.mark.parametrize(
    ("name", "update"),
    [
        ("np_scalar", NUMPY_SCALAR),
        ("np_array", NUMPY_ARRAY),
        ("precise", PRECISE),
        ("noisy", NOISY),
    ],
)
def test_state_of_every_kind_goes_on_bit_identical(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, update: str
) -> None:
    words = (*TINY, _write(tmp_path, f"resumed_{name}", update))
    whole = optbench(*words, "results_dir=whole").folder
    _until(optbench, monkeypatch, 4, *words, "results_dir=stopped")
    resumed = optbench(*words, "results_dir=stopped")
    assert (
        "going on from step 4" in resumed.err
        and "damaged" not in resumed.err
        and "bit-identical" not in resumed.err
    )
    assert (resumed.folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert _state(resumed.folder)["digest"] == _state(whole)["digest"]
    # seconds of each probe are known of a whole run only
    summaries = [json.loads((x / SUMMARY).read_text()) for x in (whole, resumed.folder)]
    assert ["each_probe_seconds" in summary for summary in summaries] == [True, False]


def test_state_that_no_checkpoint_can_hold_stops_the_run_at_the_first(
    optbench: Command, tmp_path: Path
) -> None:
    stopped = optbench(*TINY, _write(tmp_path, "unheld", DATACLASS))
    assert (
        stopped.code == 2
        and len([line for line in stopped.err.splitlines() if "optbench:" in line]) == 1
    )
    assert (
        "optimizer.state.0.h is a fractions.Fraction" in stopped.err
        and "Traceback" not in stopped.err
    )


def test_python_and_numpy_draw_the_same_in_two_runs_and_another_for_another_seed(
    optbench: Command, tmp_path: Path
) -> None:
    words = (*TINY, _write(tmp_path, "drawing", NOISY))
    first, second = (optbench(*words, f"results_dir={name}").folder for name in "ab")
    assert (first / METRICS).read_bytes() == (second / METRICS).read_bytes()
    assert (optbench(*words, "seed=1").folder / METRICS).read_bytes() != (
        first / METRICS
    ).read_bytes()


def test_a_checkpoint_without_the_newer_keys_is_gone_on_from(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, _write(tmp_path, "earlier", PLAIN))
    whole = optbench(*words, "results_dir=whole").folder
    _until(optbench, monkeypatch, 4, *words, "results_dir=stopped")
    folder = _only(tmp_path / "stopped")
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    for key in ("digest", "metrics_digest", "origin", "random_python", "random_numpy", "measured"):
        del state[key]
    torch.save(state, folder / CHECKPOINT)
    origin = json.loads((folder / PROVENANCE).read_text())
    del origin["sources"]
    (folder / PROVENANCE).write_text(json.dumps(origin))
    resumed = optbench(*words, "results_dir=stopped")
    assert "going on from step 4" in resumed.err
    assert (resumed.folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def test_a_finished_folder_of_an_earlier_version_stands(optbench: Command, tmp_path: Path) -> None:
    words = (*TINY, _write(tmp_path, "finished_earlier", PLAIN))
    folder = optbench(*words).folder
    for name, key in ((SUMMARY, "digests"), (PROVENANCE, "sources")):
        content = json.loads((folder / name).read_text())
        del content[key]
        (folder / name).write_text(json.dumps(content))
    assert "finished before" in optbench(*words).out
    (folder / METRICS).unlink()
    assert (
        "is finished, but metrics.jsonl is missing: overwrite=true runs it again"
        in optbench(*words).err
    )


def test_a_finished_run_does_not_stand_for_code_that_has_changed(
    optbench: Command, tmp_path: Path
) -> None:
    words = (*TINY, _write(tmp_path, "edited", PLAIN))
    folder = optbench(*words).folder
    then = json.loads((folder / PROVENANCE).read_text())["sources"]
    assert len(then["edited.Mine"]) == 64 and then["optbench.tasks.digits.digits"].startswith(
        "optbench "
    )
    _write(tmp_path, "edited", f"{PLAIN}  # a comment")
    assert "finished before" in optbench(*words).out
    _write(tmp_path, "edited", PLAIN.replace("-=", "+="))
    refused = optbench(*words)
    assert refused.code == 2 and len(refused.err.strip().splitlines()) == 1
    assert (
        f"the code of edited.Mine has changed since (source hash {then['edited.Mine'][:12]} then, "
        in refused.err
    )
    for way_out in (
        "overwrite=true runs it again",
        f"move {folder} away",
        "another results folder",
    ):
        assert way_out in refused.err
    assert (
        optbench(*words, "overwrite=true").code == 0 and "finished before" in optbench(*words).out
    )


def test_a_run_that_is_half_done_does_not_go_on_with_other_code(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, _write(tmp_path, "half_edited", PLAIN))
    _until(optbench, monkeypatch, 4, *words)
    folder = _only(tmp_path / "results")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    _write(tmp_path, "half_edited", PLAIN.replace("-=", "+="))
    (folder / PROVENANCE).unlink()  # the checkpoint knows, too
    refused = optbench(*words)
    assert refused.code == 2 and "the code of half_edited.Mine has changed since" in refused.err
    assert "overwrite=true starts again" in refused.err
    for file, content in before.items():
        assert file.name == PROVENANCE or file.read_bytes() == content
    assert optbench(*words, "overwrite=true").code == 0


def test_the_version_of_optbench_is_said_where_it_is_another(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, _write(tmp_path, "versioned", PLAIN))
    _until(optbench, monkeypatch, 4, *words)
    monkeypatch.setattr("optbench.__version__", "99.0")
    resumed = optbench(*words)
    assert resumed.code == 0 and "optbench 0.1.0 then, 99.0 now" in resumed.err
    monkeypatch.setattr("optbench.__version__", "100.0")
    assert "optbench 0.1.0 then, 100.0 now" in optbench(*words).out


def test_digests_close_a_finished_run(optbench: Command, tmp_path: Path) -> None:
    folder = optbench(*TINY, _write(tmp_path, "closed", PLAIN)).folder
    assert record.check_digests(folder) == ""
    for name in (*record.CLOSED, CHECKPOINT, SUMMARY):
        content = (folder / name).read_bytes()
        changed = content.replace(b'"step": 8', b'"step": 7') if name == SUMMARY else content + b" "
        (folder / name).write_bytes(changed)
        assert record.check_digests(folder) == f"{name} is not as the run left it"
        assert record.check_digests(folder, weights=False) == (
            "" if name == CHECKPOINT else f"{name} is not as the run left it"
        )
        (folder / name).unlink()
        assert name in record.check_digests(folder) and "missing" in record.check_digests(folder)
        (folder / name).write_bytes(content)
    assert record.check_digests(folder) == ""
    (folder / record.DIGESTS).unlink()
    assert record.check_digests(folder) == "digests.json is missing or damaged"


def test_a_picture_that_was_never_drawn_is_drawn_by_the_same_command(
    optbench: Command, tmp_path: Path
) -> None:
    words = [word for word in TINY if word != "picture=false"]
    words = [*words, "picture=true", _write(tmp_path, "drawn", PLAIN)]
    folder = optbench(*words).folder
    picture = folder / "dynamics.png"
    whole = picture.read_bytes()
    for content in (None, b"", whole[: len(whole) // 2]):
        picture.unlink()
        if content is not None:
            picture.write_bytes(content)
        for name in ("dynamics.png.part", "checkpoint.pt.part"):
            (folder / name).write_bytes(b"half")
        again = optbench(*words)
        assert again.code == 0 and "finished before" in again.out and picture.read_bytes() == whole
        assert not list(folder.glob("*.part"))
    mine = folder / "mine.part"
    mine.write_text("the user's")
    assert optbench(*words).code == 0 and mine.exists()


def test_only_what_a_run_writes_is_removed_by_overwrite(optbench: Command, tmp_path: Path) -> None:
    words = (*TINY, _write(tmp_path, "overwritten", PLAIN))
    folder = optbench(*words).folder
    for name in ("notes.json", "my.pt", "curve.png", "rows.jsonl"):
        (folder / name).write_text("mine")
    assert optbench(*words, "overwrite=true").code == 0
    assert {"notes.json", "my.pt", "curve.png", "rows.jsonl"} <= {
        file.name for file in folder.iterdir()
    }


def test_the_mirrors_files_are_those_that_it_writes() -> None:

    assert record.mirror_state("wandb") in record.MIRROR_FILES


def test_the_digest_of_a_state_is_the_same_however_numpy_lays_it_out() -> None:
    assert digest(np.arange(6).reshape(2, 3).T) == digest(
        np.ascontiguousarray(np.arange(6).reshape(2, 3).T)
    )
