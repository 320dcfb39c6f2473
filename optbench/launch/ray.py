"""The engine of a Ray cluster: each run is a task, with the resources that it needs.

1. Join the cluster of RAY_ADDRESS, or the one that runs on this machine, or start one here.
2. Send tasks, never many more than the cluster has room for.
3. A task whose worker or node dies is sent again; its run goes on from its checkpoint.

References:
    https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

import os
import socket
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from optbench.boundary.kinds import Count, NotNegative, Positive
from optbench.errors import MachineError, UserError
from optbench.launch.launcher import MOST_LOSSES, Finished, Order, Say, once
from optbench.launch.node import Errand, Report, arrived, errand, missing, work
from optbench.processes import GRACE, cores

PATIENCE = 20.0  # seconds without a run that ended, until it is asked whether any can start
CONNECT = 10.0  # seconds to answer in, for a cluster
AHEAD = 2  # tasks sent for each that the cluster has room for: no core waits for the driver


@dataclass(frozen=True)
class RayLauncher:
    """A Ray cluster.

    Attributes:
        order: What the runs share.
        address: Address of the cluster; None: that of RAY_ADDRESS or of this machine, else a
            cluster that is started here for the time of the command.
        cores: Cores of a run, and its threads.
        gpus: Share of a GPU that a run needs; None: a quarter with device=cuda, else none.
        memory_gb: Memory that a run needs; None: any.
        shared: Whether the nodes see the results folder; None: each looks.
    """

    order: Order
    address: str | None = None
    cores: Count = 1
    gpus: NotNegative | None = None
    memory_gb: Positive | None = None
    shared: bool | None = None

    def launch(
        self, commands: Iterable[Sequence[str]], say: Say
    ) -> Generator[Finished, None, None]:
        """See `Launcher`."""
        ray = _joined(self.address)
        waiting = deque(_Sent(tuple(command)) for command in commands)
        if not waiting:
            return
        _check_room(ray, self._needs, say)
        with errand(self.order, self.cores, self.shared) as told:
            queue = _Queue(self, ray, told, once(say), waiting)
            try:
                while queue.waiting or queue.sent:
                    queue.send()
                    yield from queue.ended()
            finally:
                queue.stop()

    @property
    def _needs(self) -> dict[str, float]:
        needs = {"CPU": float(self.cores), "GPU": self.order.gpu_share(self.gpus)}
        if self.memory_gb is not None:
            needs["memory"] = self.memory_gb * 2**30
        return {name: amount for name, amount in needs.items() if amount}

    def options(self) -> dict[str, Any]:
        """What Ray is told of a task."""
        needs = self._needs
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
        # we send it again ourselves, and a worker serves any number of runs
        options |= {"max_retries": 0, "max_calls": 0}
        return options | ({"memory": int(needs["memory"])} if "memory" in needs else {})

    def room(self, ray: Any) -> int:
        """Return how many runs the cluster has room for now, one at least."""
        have = ray.cluster_resources()
        places = min(have.get(name, 0) / amount for name, amount in self._needs.items())
        return max(1, int(places))


@dataclass
class _Sent:
    command: tuple[str, ...]
    losses: int = 0


@dataclass
class _Queue:
    """The runs of one call of `launch`."""

    engine: RayLauncher
    ray: Any
    told: Errand
    say: Say
    waiting: "deque[_Sent]"
    sent: dict[Any, _Sent] = field(default_factory=dict)

    def send(self) -> None:
        """Send tasks, as many as the order allows or the cluster is about to have room for."""
        limit = self.engine.order.jobs or AHEAD * self.engine.room(self.ray)
        task = self.ray.remote(**self.engine.options())(_one)
        while self.waiting and len(self.sent) < limit:
            run = self.waiting.popleft()
            self.sent[task.remote(self.told, run.command)] = run

    def ended(self) -> Generator[Finished, None, None]:
        """Wait until a task ends, and yield it unless it is to be sent again."""
        ready, _ = self.ray.wait(list(self.sent), num_returns=1, timeout=PATIENCE)
        if not ready:
            _check_room(self.ray, self.engine._needs, self.say)
        for reference in ready:
            run = self.sent.pop(reference)
            if (finished := self._outcome(reference, run)) is not None:
                yield finished

    def _outcome(self, reference: Any, run: _Sent) -> Finished | None:
        errors = self.ray.exceptions
        assert self.engine.order.results is not None
        try:
            return arrived(self.ray.get(reference), self.engine.order.results)
        except errors.RayTaskError as why:  # raised on the node by what is ours
            return Finished(run.command, None, str(why.cause or why).strip().split("\n")[-1])
        except errors.TaskCancelledError:
            return Finished(run.command, None, "cancelled: the same command goes on")
        except errors.LocalRayletDiedError as why:
            self.ray.shutdown()
            raise MachineError(
                "the Ray node of this command has died: the same command goes on, once ray start "
                "or another address has given it one"
            ) from why
        except errors.RayError as why:
            run.losses += 1
            kind = type(why).__name__
            if run.losses > MOST_LOSSES:
                died = f"{kind}, {run.losses} times: is there too little memory?"
                return Finished(run.command, None, died)
            self.say(f"a worker or a node died ({kind}): its runs go on from where they were")
            self.waiting.appendleft(run)
            return None

    def stop(self) -> None:
        """Ask the runs at work to stop, and wait until they have written their checkpoints."""
        if not self.sent or not self.ray.is_initialized():
            return
        for reference in self.sent:
            self.ray.cancel(reference, force=False)
        self.ray.wait(list(self.sent), num_returns=len(self.sent), timeout=GRACE)


def _one(told: Errand, command: tuple[str, ...]) -> Report:
    """The task: one run."""
    with closing(work(told, [command])) as reports:
        return next(reports)


def _joined(address: str | None) -> Any:
    """Return Ray, joined to a cluster for the life of this process.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as why:
        raise missing("ray", "Ray", why) from why
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "error"}
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted is not None:
        _check_address(wanted)
    try:
        ray.init(address=wanted or "auto", **quiet)
    except (ConnectionError, ValueError) as why:
        if wanted:
            raise _not_let_in(wanted, why) from why
        ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
    return ray


def _check_address(address: str) -> None:
    """Raise unless somebody listens there: Ray itself would try for minutes."""
    host, _, port = address.partition(":")
    if "://" in address or not port.isdigit():
        return  # `auto`, or a protocol of Ray's own
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT):
            pass
    except (OSError, OverflowError) as why:
        raise _no_cluster(address, why) from why


def _no_cluster(address: str, why: Exception) -> UserError:
    return UserError(
        f"there is no Ray cluster at {address} ({_first_line(why)}): ray start --head begins one "
        "on its first machine, and prints the address"
    )


def _not_let_in(address: str, why: Exception) -> UserError:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return _no_cluster(address, why)
    return UserError(
        f"the Ray cluster at {address} did not let this command in ({_first_line(why)}): it may "
        "ask for a token, which Ray sends to an address only if told so; with RAY_AUTH_MODE=token "
        "it sends that of ~/.ray/auth_token, which is to be the cluster's"
    )


def _first_line(why: Exception) -> str:
    return str(why).strip().split("\n")[0]


def _check_room(ray: Any, needs: dict[str, float], say: Say) -> None:
    """Say so if no node can ever hold a run; a cluster that grows by itself may come to one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes):
        return
    wanted = _words(needs)
    largest = "; ".join(_words({k: node.get(k, 0) for k in needs}) for node in nodes) or "none"
    say(
        f"waiting for a node with {wanted}, of which the cluster has none (it has {largest}): "
        "launcher.cores=, launcher.gpus= and launcher.memory_gb= say what a run needs"
    )


def _words(resources: dict[str, float]) -> str:
    units = {"CPU": "cores", "GPU": "GPUs", "memory": "GB of memory"}
    scale = {"memory": 2**30}
    return ", ".join(f"{v / scale.get(k, 1):.3g} {units.get(k, k)}" for k, v in resources.items())
