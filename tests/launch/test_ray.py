"""Runs on Ray: a node is killed in their middle, or sees no folder of the driver's."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import MachineError, UserError
from optbench.launch import ray as launch_ray
from optbench.launch.launcher import Finished, Order
from optbench.launch.local import LocalLauncher
from optbench.launch.ray import RayLauncher

ray = pytest.importorskip("ray", reason="no Ray here (pip install 'optbench[ray]'): not tested")

QUICK = ("task=quadratic", "steps=5", "probes=none", "wandb.mode=disabled", "picture=false")
SLOW = """import pathlib, time, torch
class Slow(torch.optim.SGD):
    def step(self, closure):
        if not pathlib.Path("{lost}").exists():
            time.sleep(0.1)
        return super().step(closure)
"""


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each; here is where the tests are called."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def _launched(
    cluster: Any, commands: Sequence[tuple[str, ...]], order: Order, **settings: Any
) -> Any:
    said: list[str] = []
    launcher = RayLauncher(order, address=cluster.address, **settings)
    return launcher.launch(commands, said.append), said


def _statuses(runs: list[Finished]) -> set[str]:
    assert all(run.folder for run in runs), [run.why for run in runs]
    texts = [(run.folder / "summary.json").read_text() for run in runs if run.folder]
    return {json.loads(text)["status"] for text in texts}


def test_a_cluster_makes_runs_loses_a_node_and_sends_folders_home(
    two_nodes: Any, tmp_path: Path
) -> None:
    """One test, for a cluster takes seconds to come up."""
    # 1. a failure is told, and a module of the driver's folder is found
    lost = tmp_path / "lost"  # until a node is, the runs take their time
    (tmp_path / "slow_one.py").write_text(SLOW.format(lost=lost))
    custom = ("optimizer=custom", "optimizer._target_=slow_one.Slow", "optimizer.lr=0.01")
    slow = (*QUICK[:1], "steps=60", *QUICK[2:], "checkpoint_seconds=0.5", *custom)
    order = Order(tmp_path / "results", state=tmp_path / "results" / "sweeps")
    bad, good = sorted(
        _launched(two_nodes, [(*QUICK, "optimizer.lr=-1"), QUICK], order)[0],
        key=lambda run: bool(run.folder),
    )
    assert good.folder and bad.code == 2 and "optimizer.lr must be a finite number" in bad.why

    # 2. a node dies with a run on it, which goes on from its checkpoint on the other
    commands = [(*slow, f"seed={seed}") for seed in (0, 1)]
    runs, said = _launched(two_nodes, commands, order)
    kept = tmp_path / "results" / "runs"
    killer = _once(lambda: len(list(kept.glob("*Slow*/checkpoint.pt"))) == 2)
    killer.then(lambda: two_nodes.remove_node(two_nodes.second, allow_graceful=False))
    _once(lambda: said).then(lost.touch)
    assert _statuses(list(runs)) == {"done"} and len(list(kept.glob("*Slow*"))) == 2
    assert any("a worker or a node died" in line for line in said)
    sessions = [
        len(json.loads(file.read_text())["sessions"])
        for file in kept.glob("*Slow*/provenance.json")
    ]
    assert sorted(sessions) == [1, 2]
    killed = max(kept.glob("*Slow*"), key=lambda f: len(_sessions(f)))
    whole = next(
        LocalLauncher(1, threads=1, results=tmp_path / "whole").launch(
            [c for c in commands if f"seed={_seed(killed)}" in c]
        )
    )
    assert whole.folder
    assert (killed / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()

    # 3. no folder in common: what is finished comes back whole
    far = Order(tmp_path / "far")
    [run] = list(_launched(two_nodes, [(*QUICK, "seed=5")], far, shared=False)[0])
    assert run.folder is not None and run.folder.parent == tmp_path / "far" / "runs"
    from optbench.record.folder import check_digests

    assert check_digests(run.folder) == "" and not list((tmp_path / "far").glob(".launch-*"))

    # 4. what no node has room for is said
    waiting, said = _launched(two_nodes, [QUICK], order, cores=2)
    made: list[Finished] = []
    # Ray begins a node in the main thread alone
    thread = threading.Thread(target=lambda: made.extend(waiting), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        time.sleep(0.1)
    two_nodes.add_node(num_cpus=2)
    thread.join(120)
    assert _statuses(made) == {"done"}
    assert said[0].startswith("waiting for a node with 2 cores, of which the cluster has none (it")

    # 5. the driver's own node dies, without which it cannot go on
    two_nodes.head_node.kill_raylet()
    with pytest.raises(MachineError, match="the Ray node of this command has died: the same"):
        list(_launched(two_nodes, [(*QUICK, "seed=6")], order)[0])


def _sessions(folder: Path) -> list[Any]:
    return list(json.loads((folder / "provenance.json").read_text())["sessions"])


def _seed(folder: Path) -> int:
    return int(json.loads((folder / "summary.json").read_text())["seed"])


class _once:  # noqa: N801
    """Does something, in a thread, as soon as a condition holds."""

    def __init__(self, holds: Any) -> None:
        self._holds = holds

    def then(self, do: Any) -> None:
        def wait() -> None:
            deadline = time.monotonic() + 120
            while not self._holds() and time.monotonic() < deadline:
                time.sleep(0.1)
            do()

        threading.Thread(target=wait, daemon=True).start()


def test_a_cluster_that_asks_for_a_token_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sends its token to an address only if told so, and says no more than that it failed."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(launch_ray, "_check_address", lambda _: None)  # somebody listens

    def fails(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(
        UserError, match=r"10\.0\.0\.1:6379 did not let .* with RAY_AUTH_MODE=token"
    ):
        launch_ray._joined("10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match=r"there is no Ray cluster at 10\.0\.0\.1:6379"):
        launch_ray._joined("10.0.0.1:6379")


def test_there_is_one_line_where_no_cluster_is(tmp_path: Path) -> None:
    launcher = RayLauncher(Order(tmp_path), address="127.0.0.1:1")
    with pytest.raises(UserError, match=r"there is no Ray cluster at 127\.0\.0\.1:1"):
        next(launcher.launch([QUICK], print))
