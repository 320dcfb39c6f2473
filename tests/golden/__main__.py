"""`python -m tests.golden COMMIT`: is every number still, to the bit, what it was at that commit?

Both trees run here and now, on this machine, so that nothing depends on where a reference was
recorded: the commit's in a worktree of its own, and the one in this folder. Compared are the
metrics and weights of the runs in `tests/golden/runs.py`, of two of them after an interruption, and
the board from the committed entries; `--atlas` adds the short edge atlas, which is only comparable
where both trees have it as a declared study, or neither. Folders and files may have other names.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.golden.runs import RESUMED, RUNS

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("wandb.mode=disabled", "picture=false")


def digests(tree: Path, scratch: Path, *, atlas: bool = False, jobs: int = 2) -> dict[str, str]:
    """What the code in a tree gives, by name: a hash of all its numbers, or why there is none."""
    commands = {name: (command, False) for name, command in RUNS.items()}
    commands |= {name: (command, True) for name, command in RESUMED.items()}

    def one(item: tuple[str, tuple[str, bool]]) -> tuple[str, str]:
        name, (command, interrupted) = item
        return name, _run(tree, command.split(), scratch / re.sub(r"\W+", "-", name), interrupted)

    with ThreadPoolExecutor(jobs) as pool:
        found = dict(pool.map(one, commands.items()))
    found["board"] = _board(tree, scratch / "board")
    if atlas:
        found["atlas"] = _atlas(tree, scratch / "atlas", jobs)
    return found


def _run(tree: Path, command: list[str], results: Path, interrupted: bool) -> str:
    arguments = ["-m", "optbench", *command, *QUIET, f"results_dir={results}"]
    if interrupted:
        process = _start(tree, arguments)
        while process.poll() is None and _lines(results) < 8:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    process = _start(tree, arguments)
    output = process.communicate()[0]
    if process.returncode:
        return f"exit code {process.returncode}: {output[-300:]}"
    return digest_of_run(next((results / "runs").iterdir()))


def _lines(results: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in results.glob("runs/*/metrics.jsonl"))


def digest_of_run(folder: Path) -> str:
    """Metrics without the time that they took, and weights."""
    digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes())
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    for name, tensor in sorted(state["model"].items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _board(tree: Path, scratch: Path) -> str:
    shutil.copytree(tree / "results" / "entries", scratch / "entries")
    old = [str(scratch), "--suite", "small"]
    new = ["suite=small", f"results_dir={scratch}"]
    _call(tree, "-m", "optbench.leaderboard", *(new if _one_grammar(tree) else old))
    return hashlib.sha256((scratch / "leaderboard.csv").read_bytes()).hexdigest()


def _atlas(tree: Path, scratch: Path, jobs: int) -> str:
    old = ["--short", "--jobs", str(jobs), "--results-dir", str(scratch)]
    declared = (tree / "conf/study/edge_atlas_entries.yaml").exists()
    short = "size=smoke" if declared else "short=true"
    new = [short, f"jobs={jobs}", f"results_dir={scratch}"]
    words = new if _one_grammar(tree) else old
    _call(tree, "-m", "optbench.study", "edge_atlas", *words)
    digest = hashlib.sha256()
    for file in sorted(scratch.rglob("metrics.jsonl"), key=lambda file: file.read_bytes()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _one_grammar(tree: Path) -> bool:
    """Whether every command of this tree takes KEY=VALUE."""
    grammar = tree / "optbench/boundary/command_line.py"
    return grammar.exists() and "class Command" in grammar.read_text()


def _call(tree: Path, *arguments: str) -> None:
    process = _start(tree, list(arguments))
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} in {tree}: exit code {process.returncode}\n{output}"
        )


def _start(tree: Path, arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, *arguments]
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=pipe, stderr=merged
    )


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """A worktree of the commit, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """A line for each name whose numbers are not the same, or are not there."""
    said = []
    for name in before.keys() | after.keys():
        old, new = before.get(name, "absent"), after.get(name, "absent")
        if old != new or len(old) != 64:
            said.append(f"{name}: {old} before, {new} now")
    return sorted(said)


def main() -> int:
    """Compare this folder's numbers with a commit's; exit code 1 if any differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--atlas", action="store_true", help="the short edge atlas, too (minutes)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument(
        "--before", type=Path, help="a file that keeps what the commit gives on this machine"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.before and given.before.is_file():
            before = json.loads(given.before.read_text())
        else:
            with tree_of(given.commit) as tree:
                before = digests(tree, Path(folder) / "before", atlas=given.atlas, jobs=given.jobs)
            if given.before:
                given.before.write_text(json.dumps(before, indent=1))
        after = digests(ROOT, Path(folder) / "after", atlas=given.atlas, jobs=given.jobs)
    said = differences(before, after)
    print("\n".join(said))
    print(f"{len(after) - len(said)} of {len(after)} are the same to the bit as at {given.commit}")
    return bool(said)


if __name__ == "__main__":
    raise SystemExit(main())
