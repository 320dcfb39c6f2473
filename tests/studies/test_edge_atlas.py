"""The edge atlas: its entries, the rule for its learning rates, its claims, its page, a few runs."""

import csv
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench import lab
from optbench.boundary import ShapeError, read_yaml
from optbench.paths import conf_folder
from optbench.studies import atlas_page, atlas_picture
from optbench.studies.atlas_entries import Atlas, Entry, read_atlas
from optbench.studies.command import Settings, do_choice, engine_of, main
from optbench.studies.declaration import known_studies, read_study
from optbench.studies.edge_atlas import SLOWER, EdgeAtlas, mean_interval, slower_level
from optbench.studies.frame import Cell, Table, columns
from optbench.studies.lr_choice import Tried, choose
from tests.conftest import Call

ENTRY = Entry("x", ("optimizer=sgd",), (0.1,), 0.1)


def study() -> EdgeAtlas:
    found = read_study("edge_atlas").study
    assert isinstance(found, EdgeAtlas)
    return found


def entries() -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(conf_folder() / "study/edge_atlas_entries.yaml")
    return dict(content["settings"])


def test_its_entries_are_part_of_its_declaration_and_no_study() -> None:
    declared = read_study("edge_atlas")
    assert [path.name for path in declared.files] == ["edge_atlas.yaml", "edge_atlas_entries.yaml"]
    assert "edge_atlas" in known_studies() and "edge_atlas_entries" not in known_studies()
    assert study().atlas == read_atlas()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reason": "nope"}, "has no known reason, got nope"),
        ({"lr": 7.0}, "has lr 7, not one of its lrs"),
        ({"claims": ["nope"]}, "claims"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    settings = entries()
    settings["entries"][0] |= change
    with pytest.raises(ShapeError, match=said):
        Atlas.of(settings)


def test_names_are_unique_rates_ascend_and_commands_begin_with_the_optimizer() -> None:
    one = study()
    atlas = one.atlas
    assert len({e.name for e in atlas.entries}) == len(atlas.entries)
    assert not any("," in e.name for e in atlas.entries)
    assert all(e.lr in e.lrs and list(e.lrs) == sorted(e.lrs) for e in atlas.entries)
    assert all(cell.command[0].startswith("optimizer=") for cell in one.plan("small"))
    assert atlas.choice_seed not in {cell.factors["seed"] for cell in one.plan("small")}
    batches = [e for e in atlas.entries if any(o.startswith("batch_size=") for o in e.overrides)]
    assert all(not e.full_batch for e in batches)
    assert {e for e in atlas.entries if not e.full_batch} == set(batches)


def test_an_optimizer_that_is_not_installed_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optbench.studies.atlas_entries.find_spec", lambda _: None)
    planned = {cell.factors["optimizer"] for cell in study().plan("small")}
    assert len(planned) == len(read_atlas().entries) - 2 and "SOAP" not in planned
    assert "left out: SOAP needs pytorch_optimizer: pip install" in capsys.readouterr().err
    claimed = {e.name for e in read_atlas().entries if e.claims}
    assert claimed <= planned, "no verdict depends on what is installed"


def test_every_claim_has_the_entries_that_it_counts_and_the_others_say_why() -> None:
    atlas = read_atlas()
    count = Counter(claim for e in atlas.entries for claim in e.claims)
    assert count == {
        "formula": 14, "multiplier": 12, "balance": 5, "amplitude": 3, "obeyed": 2, "flow": 2,
        "flow_control": 1,
    }  # fmt: skip
    assert set(count) == {h.name for h in study().declaration.hypotheses}
    for e in atlas.entries:
        assert atlas.why(e) or ("formula" in e.claims and e.tolerance == 0.05), e.name
        assert e.flow or not {"flow", "flow_control"} & set(e.claims)
        assert e.fixed_size or "amplitude" not in e.claims
        assert e.tolerance is not None or "formula" not in e.claims


def test_the_rule_takes_the_smallest_rate_that_starts_below_arrives_and_falls() -> None:
    tried = [
        Tried("x", 0.1, 0.3, 0.8, 0.9, True),  # too late
        Tried("x", 0.2, 1.2, 1.0, 1.0, True),  # from above
        Tried("x", 0.3, 0.5, 1.0, 1.0, False),  # does not learn
        Tried("x", 0.4, 0.5, 1.3, 1.3, True),
        Tried("x", 0.5, 0.5, 1.0, 1.0, True),
    ]
    assert choose(tried) == 0.4  # how far above is not asked
    assert choose(tried[:3]) is None
    assert not Tried("x", 0.1, math.nan, math.nan, math.nan, True).admissible


def at_the_edge(**changes: dict[str, float]) -> Table:
    """Five seeds of every entry at 1, flows too; changes of a column, by entry, are factors."""
    made = []
    for entry in read_atlas().entries:
        for seed in range(4, 9):
            near = 1 + 0.002 * (seed - 6)  # seeds that agree to the bit have no interval
            row: dict[str, Any] = {"optimizer": entry.name, "seed": seed, "status": "done"}
            row |= dict.fromkeys(("formula", "multiplier", "amplitude", "balance", "flow"), near)
            row["drift"] = 0.0
            row["flow"] = 1.4 if "flow_control" in entry.claims else 1.0
            if "obeyed" in entry.claims:
                row["formula"] = 1.1
            for column, factors in changes.items():
                row[column] *= factors.get(entry.name, 1.0)
            made.append(row)
    return columns(made)


def verdicts(table: Table) -> dict[str, str]:
    return {f.hypothesis: f.verdict for f in study().judge(table)}


def test_the_rules_on_tables_made_by_hand() -> None:
    assert set(verdicts(at_the_edge()).values()) == {"supported"}
    # one entry of many decides; 8 % is within the tolerance of RMSprop alone
    assert verdicts(at_the_edge(formula={"RMSprop": 1.08}))["formula"] == "supported"
    assert verdicts(at_the_edge(formula={"Adam": 1.08}))["formula"] == "refuted"
    assert verdicts(at_the_edge(formula={"Adam": 1 / 1.08}))["formula"] == "refuted"
    assert verdicts(at_the_edge(multiplier={"Adadelta": 1.12}))["multiplier"] == "refuted"
    swapped = at_the_edge(
        formula={"Adadelta": 1 / 1.1, "Adafactor": 1 / 1.1},
        multiplier={"Adadelta": 1.1, "Adafactor": 1.1},
    )
    assert verdicts(swapped)["obeyed"] == "refuted"
    assert verdicts(at_the_edge(flow={"spectral descent": 1.3}))["flow"] == "refuted"
    assert verdicts(at_the_edge(flow={"gradient descent": 1 / 1.4}))["flow_control"] == "refuted"
    assert verdicts(at_the_edge(amplitude={"Lion": 0.9}))["amplitude"] == "refuted"
    assert verdicts(at_the_edge(balance={"Muon": 0.5}))["balance"] == "refuted"


def test_a_run_that_moves_diverges_or_is_not_there_leaves_its_claims_undecided() -> None:
    moving = at_the_edge()
    moving["drift"][moving["optimizer"] == "Adam"] = 0.15
    found = {f.hypothesis: f for f in study().judge(moving)}
    assert found["formula"].verdict == found["multiplier"].verdict == "undecided"
    assert found["formula"].why == "Without a level: Adam." and found["formula"].n == 65
    assert found["flow"].verdict == "supported"
    broken = at_the_edge()
    lost = (broken["optimizer"] == "Lion") & (broken["seed"] == 4)
    statuses = np.where(lost, "diverged", broken["status"])
    assert verdicts({**broken, "status": statuses})["amplitude"] == "undecided"
    fewer = {k: v[moving["optimizer"] != "Muon"] for k, v in at_the_edge().items()}
    assert verdicts(fewer)["balance"] == "undecided"
    assert set(verdicts({}).values()) == {"undecided"}


def test_no_planted_confounder_fools_the_rules() -> None:
    one = study()
    for world, right in one.worlds.items():
        found = {f.hypothesis: f.verdict for f in one.judge(one.planted(world, 3))}
        for name, there in right.items():
            assert found[name] in ((there,) if world != "passing" else ("undecided",))


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_interval(np.array([1.0, 2.0, 3.0]), 0.95)
    # t of 2 degrees of freedom, .975: 4.302653 (tables); s/√n = 1/√3
    assert found.high - found.value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(
    ("ratios", "reached", "statuses", "expected"),
    [
        ([1.04, 0.96], [1.0, 1.0], ["done", "done"], "within"),
        ([1.04, 0.94], [1.0, 0.0], ["done", "done"], "outside"),
        ([0.99], [0.0], ["done"], "edge not reached"),
        ([1.0], [1.0], ["diverged"], "diverged"),
        ([], [], [], "missing"),
    ],
)
def test_the_word_on_an_entry(
    ratios: list[float], reached: list[float], statuses: list[str], expected: str
) -> None:
    assert atlas_page.verdict(ENTRY, ratios, reached, statuses) == expected
    if expected == "within":
        none = replace(ENTRY, tolerance=None)
        assert atlas_page.verdict(none, ratios, reached, statuses) == "open"


def test_the_table_and_the_pictures(tmp_path: Path) -> None:
    table = {
        **at_the_edge(multiplier={"Adafactor": 1.3}, amplitude={"Signum": 0.5}),
        "quantity": np.array(["sharpness/lambda_max"] * 145),
        "reached": np.ones(145),
        **{f"part_{i}": np.linspace(0.5, 1.1, 145) for i in (1, 2, 3)},
    }
    rows = atlas_page.rows(read_atlas(), table)
    lines = {row.entry.name: atlas_page.cells(row) for row in rows}
    assert list(lines) == [e.name for e in read_atlas().entries]
    adam = ["Adam", "0.002", "λ₁(H)", "1.000", "0.996 to 1.004", "±5%", "within", "1.000"]
    assert lines["Adam"][:8] == adam
    assert lines["Adafactor"][7] == "1.300" and lines["Adafactor"][10] == "neither"
    assert lines["Signum"][7:9] == ["–", "amplitude 0.500"]
    assert lines["Signum"][10] == "open" and lines["SGD batch 16"][10] == "–"
    few = rows[-6:]  # thirty panels take ten seconds
    one = atlas_picture.draw_distances(few, tmp_path / "distances")
    two = atlas_picture.draw_levels(few, table, tmp_path / "levels")
    for name in (one, two):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_run_gives_a_row_and_its_flow_is_measured_once(tmp_path: Path) -> None:
    one = study()
    cell = next(c for c in one.plan("smoke") if c.factors["optimizer"] == "gradient descent")
    assert "keep_steps=[450]" in cell.command and "probes.multiplier.every=201" in cell.command
    short = ("steps=60", "keep_steps=[30]", "probes.multiplier.every=51", "model.widths=[4]")
    run = lab.start(*cell.command, *short, f"results_dir={tmp_path}").train()
    (row,) = one.read(cell, run.folder)
    assert row["quantity"] == "sharpness/lambda_max" and row["measured"] == 2
    # below its edge gradient descent follows its flow, and μ = 1 − ηλ₁: both say ηλ₁/2, here of
    # other steps of a run whose λ₁ rises by 6 % meanwhile
    assert row["flow"] == pytest.approx(row["formula"], rel=0.02)
    assert row["multiplier"] == pytest.approx(row["formula"], rel=0.05)
    assert row["part_1"] > 0 and row["lr"] == "0.15"
    (kept,) = run.folder.glob("flow-*.json")
    before = kept.stat().st_mtime_ns
    assert (row,) == tuple(one.read(cell, run.folder)) and kept.stat().st_mtime_ns == before
    assert slower_level(run.folder, SLOWER) == row["flow"]
    other = Cell({**cell.factors, "optimizer": "Adam"}, cell.command)
    assert math.isnan(one.read(other, run.folder)[0]["flow"] or math.nan)


def test_every_rate_that_was_tried_is_written_and_a_rate_that_diverges_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas = replace(read_atlas(), choice_steps=60)
    engine = engine_of(Settings("edge_atlas", jobs=1, results_dir=tmp_path))
    tried = [replace(ENTRY, lrs=(0.1, 5e3))]
    assert do_choice(atlas, tried, engine, tmp_path, "rates") == []
    rows = list(csv.DictReader((tmp_path / "studies/rates/edge_atlas_rates.csv").open()))
    assert [row["lr"] for row in rows] == ["0.1", "5000"]
    assert [row["falls"] for row in rows] == ["True", "False"]
    assert "takes none" in capsys.readouterr().out


def test_an_unknown_entry_is_named_with_those_that_exist(tmp_path: Path, called: Call) -> None:
    done = called(main, tmp_path, "edge_atlas", "choose=true", "only=nope")
    assert done.code == 2 and "no entry called nope" in done.err and "Adam" in done.err
    done = called(main, tmp_path, "edge_atlas", "only=Adam")
    assert done.code == 2 and "only= goes with choose=true" in done.err


def test_results_that_cannot_be_written_name_the_key_of_the_study(
    tmp_path: Path, called: Call
) -> None:
    (tmp_path / "taken").write_text("")
    folder = f"results_dir={tmp_path / 'taken'}"
    done = called(main, tmp_path, "edge_atlas", "size=smoke", folder)
    assert done.code == 1
    assert "a file is in the way" in done.err and "say results_dir=DIR" in done.err
