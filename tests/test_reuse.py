"""A finished run is used again only while its data are those that it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig
from PIL import Image

from optbench.configuration.compose import compose_config
from optbench.configuration.finished import PresentData, data_hash
from optbench.errors import UserError
from optbench.protocol.tuner import main
from optbench.studies.command import Settings, engine_of, make_runs
from tests.conftest import Call, Command, Outcome

SENTENCES = ("the cat sat on the mat. " * 40, "the dog sat on the rug. " * 40)
ON_TEXT = ("task=char_lm_small", "task.text=text.txt", "task.context=8", "steps=2", "probes=none")


def _hash(folder: Path) -> str:
    found: str = json.loads((folder / "provenance.json").read_text())["data_hash"]
    return found


def test_another_text_under_the_same_name_is_refused_and_overwrite_trains_on_it(
    optbench: Command, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(SENTENCES[0])
    first = optbench(*ON_TEXT)
    assert "finished before" in optbench(*ON_TEXT).out
    then = _hash(first.folder)
    (tmp_path / "text.txt").write_text(SENTENCES[1])
    refused = optbench(*ON_TEXT)
    assert refused.code == 2 and len(refused.err.strip().splitlines()) == 1
    assert f"data have changed since (data hash {then[:12]} then, " in refused.err
    assert (
        "overwrite=true runs it again" in refused.err and f"move {first.folder} away" in refused.err
    )
    assert _hash(first.folder) == then
    again = optbench(*ON_TEXT, "overwrite=true")
    now = _hash(again.folder)
    assert (
        again.code == 0
        and again.folder == first.folder
        and now != then
        and f"{now[:12]} now" in refused.err
    )
    assert "finished before" in optbench(*ON_TEXT).out
    (tmp_path / "text.txt").unlink()
    assert "cannot read text.txt (No such file or directory)" in optbench(*ON_TEXT).err


def test_another_image_in_the_folder_is_refused_and_a_sweep_goes_on_beside_it(
    optbench: Command, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng([i, ord(label)]).integers(
                0, 256, (8, 8, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(images / label / f"{i}.png")
    run = (
        "task=image_folder",
        "task.folder=images",
        "model=linear",
        "optimizer=sgd",
        "batch_size=4",
        "probes=none",
    )
    first = optbench(*run, "steps=2")
    assert first.code == 0, first.err
    assert "finished before" in optbench(*run, "steps=2").out
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "b" / "3.png")
    swept = optbench("--multirun", *run, "steps=2,3")
    assert swept.code == 2 and swept.err.count("its data have changed since") == 1
    assert len(list((tmp_path / "results/runs").iterdir())) == 2


def test_data_are_read_once_for_all_that_differ_in_the_optimizer_alone(
    optbench: Command, tmp_path: Path
) -> None:
    asked = []

    def config(overrides: tuple[str, ...]) -> DictConfig:
        asked.append(overrides)
        return compose_config(overrides)

    present = PresentData()
    for overrides in (
        ("seed=0",),
        ("seed=0", "optimizer=adam"),
        ("seed=1",),
        ("seed=0", "dtype=float64"),
    ):
        command = (
            "task=digits",
            "task.label_noise=0.1",
            "steps=1",
            "probes=none",
            "model=linear",
            *overrides,
        )
        folder = optbench(*command).folder
        present.check(folder, lambda command=command: config(command))  # type: ignore[misc]
        assert data_hash(compose_config(command)) == _hash(folder)
    assert len(asked) == 3
    (folder / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read \('task'\): move it away"):
        present.check(folder, lambda: config(()))


def test_a_study_refuses_runs_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(SENTENCES[0])
    commands = [
        [*ON_TEXT, "optimizer=sgd", "wandb.mode=disabled", f"seed={seed}"] for seed in (0, 1)
    ]
    engine = engine_of(Settings("lr", jobs=2, results_dir=Path("results")))
    assert make_runs(commands, engine, Path("results"), Path("study")).failures == []
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("results/runs/*/*")}
    assert make_runs(commands, engine, Path("results"), Path("study")).failures == []
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("results/runs/*/*")}
    (tmp_path / "text.txt").write_text(SENTENCES[1])
    with pytest.raises(UserError, match="its data have changed since"):
        make_runs(commands, engine, Path("results"), Path("study"))


def test_the_tuner_refuses_runs_on_other_data(tmp_path: Path, called: Call) -> None:
    on_text = {
        "kind": "language",
        "run": list(ON_TEXT[:-1]),
        "final": ["probes=default"],
        "metric": "test/loss",
        "select": "val/loss",
        "start": 3.0,
        "good": 0.1,
        "targets": [2.0],
    }
    suite = {
        "version": 1,
        "points": 1,
        "sobol_seed": 0,
        "tuning_seeds": [1000],
        "final_seeds": [0, 1],
        "held_out": "second",
        "common": [],
        "tasks": {
            "first": on_text,
            "second": on_text | {"run": [*ON_TEXT[:2], "task.context=4", "steps=2"]},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "text.txt").write_text(SENTENCES[0])

    def tune() -> Outcome:
        return called(main, tmp_path, "suite=mine.yaml", "optimizer=sgd", "jobs=2")

    first = tune()
    assert first.code == 0, first.err
    assert tune().code == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("results/runs/*/*")}
    (tmp_path / "text.txt").write_text(SENTENCES[1])
    refused = tune()
    assert refused.code == 2 and "its data have changed since" in refused.err
    assert "Traceback" not in refused.err
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("results/runs/*/*")}
