"""The saved W&B workspace: its panels are of metrics that there are, and it is made without a login."""

import pytest
import wandb

from optbench import metrics
from optbench.errors import UserError
from optbench.record import workspace as module
from optbench.record.workspace import SECTIONS, Settings, workspace

NAMES = [name for panels in SECTIONS.values() for panel in panels for name in panel.lines]


def test_each_panel_is_of_metrics_that_are_recorded() -> None:
    assert set(NAMES) <= set(metrics.METRICS)
    assert metrics.SHARPNESS in NAMES and metrics.EDGE_DISTANCE in NAMES


def test_the_workspace_says_what_w_and_b_is_to_draw() -> None:
    pytest.importorskip("wandb_workspaces", reason="needs optbench[workspace]")
    view = workspace(Settings("me", "mine"))._to_model().model_dump(by_alias=True)
    assert (view["entity"], view["project"]) == ("me", "mine")
    drawn = {
        panel["config"]["chartTitle"]: panel["config"]
        for section in view["spec"]["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    }
    loss = drawn["loss"]
    assert loss["metrics"] == ["train/loss", "val/loss", "test/loss"] and loss["yLogScale"]
    assert [name for config in drawn.values() for name in config["metrics"]] == NAMES
    assert {config["xAxis"] for config in drawn.values()} == {"_step"}


def test_without_the_library_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'optbench\[workspace\]'"):
        workspace(Settings("me"))


def test_what_w_and_b_refuses_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def save(self) -> None:
            raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(module, "workspace", lambda _: Refusing())
    with pytest.raises(
        UserError, match=r"did not save it: No API key configured\. Use `wandb login`"
    ):
        module.save(Settings("me"))
