"""The command line as its users meet it: help, sweeps, and one clear line for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir

from optbench.configuration.build import build
from optbench.configuration.construct import build_probes
from optbench.probes import check_cadences
from optbench.task import Task
from tests.conftest import Command
from tests.processes import Forked, command

ROOT = Path(__file__).resolve().parent.parent
TINY = ("task=quadratic", "steps=5")


def test_the_last_line_is_the_run_folder_and_the_same_command_skips_it(optbench: Command) -> None:
    first = optbench(*TINY)
    assert first.code == 0 and (first.folder / "summary.json").exists()
    before = (first.folder / "summary.json").read_bytes()
    second = optbench(*TINY)
    assert second.folder == first.folder and "finished before (done at step 5)" in second.out
    assert (first.folder / "summary.json").read_bytes() == before
    assert "finished before" not in optbench(*TINY, "overwrite=true").out


def test_what_cannot_move_a_result_is_not_in_the_folders_name(optbench: Command) -> None:
    name = optbench(*TINY).folder.name
    assert optbench(*TINY, "results_dir=elsewhere", "checkpoint_seconds=7").folder.name == name
    assert optbench(*TINY, "seed=1").folder.name != name


def test_steps_win_over_a_tasks_own_epochs_and_epochs_over_its_steps(optbench: Command) -> None:
    def steps(*arguments: str) -> int:
        folder = optbench("task=digits", "probes=none", *arguments).folder
        return int(json.loads((folder / "summary.json").read_text())["steps"])

    assert steps("steps=3") == 3
    assert steps("epochs=2", "batch_size=100") == 20
    assert steps("epochs=2") == 2


def test_a_sweep_runs_every_combination_and_issued_again_only_what_is_missing(
    optbench: Command, tmp_path: Path
) -> None:
    sweep = ("--multirun", "task=quadratic", "steps=5", "optimizer=sgd,adam", "seed=0,1")
    assert optbench(*sweep).code == 0
    folders = list((tmp_path / "results/runs").iterdir())
    assert len(folders) == 4
    (folders[0] / "summary.json").unlink()
    again = optbench(*sweep)
    assert again.out.count("finished before") == 3
    assert json.loads((folders[0] / "summary.json").read_text())["status"] == "done"


def test_one_bad_run_of_a_sweep_does_not_stop_the_others(optbench: Command, tmp_path: Path) -> None:
    outcome = optbench("--multirun", *TINY, "optimizer.lr=-1,0.1,0.2")
    assert outcome.code == 2 and "got -1" in outcome.err
    assert len(list((tmp_path / "results/runs").iterdir())) == 2


def test_help_shows_groups_entries_and_five_examples(optbench: Command) -> None:
    outcome = optbench("--help")
    assert outcome.code == 0
    for word in (
        "optimizer   adabelief, ",
        "adam",
        "muon",
        "task        char_lm, ",
        "sparse_parity_small",
        "model       cnn, ",
        "schedule    constant, ",
        "probes      default, ",
    ):
        assert word in outcome.out
    assert outcome.out.count("  python -m optbench") == 6
    assert "???" not in outcome.out


BAD = {
    "optimizer=adamm": (2, "there is no optimizer called adamm. Did you mean adam, "),
    "task=cifr": (2, "there is no task called cifr. Did you mean cifar, "),
    "optimizer.lrr=1": (2, "there is no key optimizer.lrr. Did you mean optimizer.lr"),
    "batchsize=3": (2, "there is no key batchsize. Did you mean batch_size"),
    "optimizer.lr=-1": (2, "optimizer.lr must be a finite number, above 0, got -1"),
    "optimizer.lr=fast": (2, "optimizer.lr must be a finite number, above 0, got fast"),
    "optimizer.momentum=-2": (
        2,
        "cannot build the optimizer as configured: ValueError: Invalid momentum value: -2",
    ),
    "batch_size=0": (2, "batch_size must be a whole number, at least 1 or full, got 0"),
    "batch_size=1001": (2, "between 1 and the 1000 training examples, got 1001"),
    "steps=0": (2, "steps must be a whole number, at least 1 or null, got 0"),
    "steps=2.5": (2, "steps must be a whole number, at least 1 or null, got 2.5"),
    "steps=5 epochs=2": (2, "steps and epochs both say how long to train: give one"),
    "clip_norm=-1": (2, "clip_norm must be a finite number, above 0 or null, got -1"),
    "seed=abc": (2, "seed must be a whole number, got abc"),
    "device=tpu": (2, "device must be auto, cpu, cuda, cuda:NUMBER or mps, got tpu"),
    "dtype=float16": (2, "dtype must be float32, float64 or bf16, got float16"),
    "dtype=bf16 device=cpu": (2, "dtype=bf16 needs a GPU"),
    "wandb.mode=sometimes": (
        2,
        "wandb.mode must be auto, online, offline or disabled, got sometimes",
    ),
    "task.train_size=5000": (2, "task.train_size must be between 1 and 1000 for digits, got 5000"),
    "task.loss=hinge": (2, "task.loss must be ce or mse, got hinge"),
    "+task.colour=red": (2, "there is no key task.colour."),
    "model.activation=rleu": (
        2,
        "model.activation must be tanh, relu, gelu, silu, elu, ",
    ),
    "task=char_lm model=mlp": (
        2,
        "this model does not fit this task, whose inputs are tokens of shape (64,)",
    ),
    "model=gpt": (2, "model=gpt needs sequences of tokens, got inputs of shape (1, 8, 8)"),
    "model.scaling=mup_adam optimizer=muon": (
        2,
        "say model.scaling=standard, or an optimizer with one optimizer.lr",
    ),
    "task.imbalance=0": (2, "task.imbalance must be a finite number, at least 1, got 0"),
    "task=image_folder": (2, "task.folder has no default: say task.folder=VALUE"),
    "task=mnist task.root=nowhere task.verify=false": (
        1,
        "MNIST is not here: no train-images-idx3-ubyte. Looked in",
    ),
    "probes.sharpness.every=0": (
        2,
        "probes.sharpness.every must be a positive number of steps, epoch, log, never, adaptive or a probe before it",
    ),
    "probes.sharpness=null": (2, "to switch it off, say probes.sharpness.every=never"),
    "schedule=warmup_cosine schedule.warmup=2": (
        2,
        "schedule.warmup must be a finite number, at least 0 and below 1",
    ),
    "optimizer=custom": (2, "optimizer._target_ has no default: say optimizer._target_=VALUE"),
    "optimizer=custom optimizer._target_=nowhere.Mine": (
        2,
        "cannot import optimizer._target_=nowhere.Mine: ",
    ),
    "optimizer=custom optimizer._target_=torch.nn.Linear": (2, "there is no key optimizer.lr"),
    "optimizer.lr=": (2, "optimizer.lr must be a finite number, above 0, got ''"),
    "optimizer.lr=[": (2, "no viable alternative at input '['"),
    "task=cifar task.root=nowhere task.verify=false": (
        1,
        "CIFAR-10 is not here: no data_batch_1. Looked in",
    ),
    "task=quadratic task.spectrum=[1,-2]": (
        2,
        "task.spectrum must be finite numbers, none negative, got [1, -2]",
    ),
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_is_wrong_takes_one_clear_line(optbench: Command, arguments: str) -> None:
    code, message = BAD[arguments]
    outcome = optbench(*arguments.split())
    assert message in outcome.err
    assert outcome.code == code
    assert "Traceback" not in outcome.err and len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.startswith("optbench: ")


def test_two_processes_on_one_run_folder(optbench: Command) -> None:
    folder = optbench(*TINY).folder
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "summary.json").unlink()
    with FileLock(folder / "run.lock"):
        outcome = optbench(*TINY)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert outcome.code == 1 and "is at work in" in outcome.err and "Traceback" not in outcome.err
    assert optbench(*TINY).code == 0
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_file_where_the_results_should_go(optbench: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = optbench(*TINY, "results_dir=taken")
    assert (
        outcome.code == 1
        and "say results_dir=DIR" in outcome.err
        and "Traceback" not in outcome.err
    )


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file sizes limits")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on file sizes makes writes fail half-way, as a full disk does."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY));"
        "from optbench.cli.command_job import main; main()"
    )
    arguments = ("task=digits", "steps=600", "checkpoint_seconds=0.05", "model.widths=[8]")
    for name in ("full", "roomy"):
        (tmp_path / name).mkdir()
    full = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "40000",
            *arguments,
            f"results_dir={tmp_path / 'full'}",
            "wandb.mode=disabled",
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert full.returncode == 1, full.stderr
    assert "no room left on the disk" in full.stderr and "Traceback" not in full.stderr
    folder = next((tmp_path / "full/runs").iterdir())
    assert json.loads((folder / "summary.json").read_text())["status"] == "crashed"
    again = [Forked(tmp_path / name, *arguments) for name in ("full", "roomy")]
    assert [process.end() for process in again] == [0, 0]
    same = next((tmp_path / "roomy/runs").iterdir())
    assert (folder / "metrics.jsonl").read_bytes() == (same / "metrics.jsonl").read_bytes()


def test_changed_data_cannot_be_resumed(optbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = optbench(*TINY).folder
    (folder / "summary.json").unlink()
    monkeypatch.setattr(Task, "data_hash", lambda _: "another")
    outcome = optbench(*TINY)
    assert outcome.code == 2 and "overwrite=true starts again" in outcome.err
    assert optbench(*TINY, "overwrite=true").code == 0


OPTIMIZER = """
import torch

class SignGD(torch.optim.Optimizer):
    def __init__(self, params, lr=0.01, scale=1.0):
        super().__init__(params, dict(lr=lr, scale=scale))

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign(), alpha=-group["lr"] * group["scale"])
        return loss
"""


def test_an_optimizer_from_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "my_file.py").write_text(OPTIMIZER)
    (tmp_path / "my_conf/optimizer").mkdir(parents=True)
    (tmp_path / "my_conf/optimizer/signgd.yaml").write_text(
        "_target_: my_file.SignGD\n_partial_: true\nlr: 0.001\nscale: 1.0\n"
    )
    for choice, label in (
        (("optimizer=custom", "optimizer._target_=my_file.SignGD", "+optimizer.scale=2"), "SignGD"),
        (("--config-dir", "my_conf", "optimizer=signgd"), "signgd"),
    ):
        done = command(tmp_path, *choice, "task=digits", "steps=20", "wandb.mode=disabled")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / done.stdout.splitlines()[-1]
        assert f"-{label}-" in folder.name
        assert "edge/distance is absent: " in done.stderr
        last = json.loads((folder / "summary.json").read_text())["last"]
        assert last["train/error"] < 0.8 and "edge/distance" not in last


def test_an_optimizer_of_15_lines_outside_the_package_gets_its_distance_to_the_edge(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than its own file and YAML: the black box finds 2/(η(1 + 1/(1+β))) for g + m, m ← βm + g."""
    (tmp_path / "plugin_of_a_user.py").write_text(
        """import torch

class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for p in self.param_groups[0]["params"]:
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            m.mul_(0.7).add_(p.grad)
            p.sub_(self.param_groups[0]["lr"] * (m + p.grad))
        return loss
"""
    )
    conf = tmp_path / "my_conf" / "optimizer"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("_target_: plugin_of_a_user.Mine\n_partial_: true\nlr: 0.05\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = optbench(
        "--config-dir", "my_conf", "optimizer=mine", "task=digits", "steps=10", "model.widths=[8]"
    )
    last = json.loads((outcome.folder / "summary.json").read_text())["last"]
    assert last["edge/threshold"] == pytest.approx(2 / (0.05 * (1 + 1 / 1.7)), rel=1e-3)
    assert last["edge/distance"] == pytest.approx(
        last["sharpness/lambda_max"] / last["edge/threshold"]
    )
    assert "(probed)" in outcome.err


@pytest.mark.parametrize("probes", [file.stem for file in (ROOT / "conf/probes").glob("*.yaml")])
def test_any_task_takes_any_set_of_probes(probes: str) -> None:
    for task in sorted(file.stem for file in (ROOT / "conf/task").glob("*.yaml")):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", [f"task={task}", f"probes={probes}", "steps=10"])
        check_cadences(dict(build_probes(config)))


NEEDS_FILES = ("cifar", "mnist", "fashion_mnist", "image_folder")


def test_a_run_without_sharpness_and_edge_keeps_the_other_probes(optbench: Command) -> None:
    done = optbench("probes.sharpness.every=never", "steps=60", "probes.layers.every=20")
    records = (done.folder / "metrics.jsonl").read_text()
    assert (
        "layers/" in records
        and "gap/loss" in records
        and "sharpness/" not in records
        and "edge/" not in records
    )


@pytest.mark.parametrize(
    "task", sorted(f.stem for f in (ROOT / "conf/task").glob("*.yaml") if "large" not in f.stem)
)
def test_every_task_that_needs_no_files_starts_by_its_default(optbench: Command, task: str) -> None:
    if task.removesuffix("_small") in NEEDS_FILES:
        pytest.skip("needs files; see tests/tasks")
    outcome = optbench(f"task={task}", "steps=2", "picture=true")
    assert outcome.code == 0, outcome.err
    last = json.loads((outcome.folder / "summary.json").read_text())["last"]
    assert last["sharpness/lambda_max_bound"] < 0.05 * abs(last["sharpness/lambda_max"])
    origin = json.loads((outcome.folder / "provenance.json").read_text())
    assert origin["parameters"] > 0 and len(origin["data_hash"]) == 64


def test_a_task_takes_another_model_than_its_own(optbench: Command) -> None:
    assert optbench("task=sparse_parity_small", "model=mlp", "steps=2").code == 0
    assert (
        optbench("task=modular_addition_small", "model=gpt", "task.encoding=tokens", "steps=2").code
        == 0
    )
    assert optbench("task=char_lm_small", "model=gpt_small", "optimizer=sgd", "steps=2").code == 0


def test_mup_gives_each_layer_its_own_learning_rate(optbench: Command) -> None:
    outcome = optbench(
        "task=digits",
        "steps=3",
        "model.scaling=mup_sgd",
        "model.widths=[128]",
        "model.base_width=32",
    )
    assert outcome.code == 0, outcome.err
    last = json.loads((outcome.folder / "summary.json").read_text())["last"]
    assert "edge/threshold" in last or "edge/preconditioned_sharpness" in last


@pytest.mark.parametrize(
    ("optimizer", "decay"),  # AdamW's own default is 0.01
    [
        (["optimizer=adamw"], 0.01),
        (["optimizer=custom", "optimizer._target_=torch.optim.AdamW"], 0.01),
    ],
)
def test_mup_leaves_weight_decay_as_it_is(optimizer: list[str], decay: float) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "config",
            ["steps=1", *optimizer, "model.scaling=mup_adam", "model.widths=[256]", "device=cpu"],
        )
    groups = build(config).update.optimizer.param_groups
    low, high = sorted(group["lr"] for group in groups)
    assert low == pytest.approx(high / 4)
    assert [group["lr"] * group["weight_decay"] for group in groups] == pytest.approx(
        [high * decay] * 2
    )


def test_a_folder_of_yamls_that_is_not_there_is_refused(optbench: Command) -> None:
    outcome = optbench("--config-dir", "nowhere", "task=quadratic", "steps=1")
    assert outcome.code == 2
    assert "config_dir=nowhere is no folder" in outcome.err
