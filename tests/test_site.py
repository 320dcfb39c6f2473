"""The docs site: it builds without a warning, its tutorials run, and its pictures are current."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml

from docs import build, edge_picture, gallery_page, tool_pictures
from docs.edge_picture import TABLE
from docs.picture_source import FOLDER, digest, drawn_from, is_current, tables_of

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))

# what makes the cells of a tutorial take long, and what is run in its place
SHORTER = {
    "certified_curvature": {
        "(500,": "(50,",
        "nn.Conv2d(1, 8,": "nn.Conv2d(1, 4,",
        "Linear(8 *": "Linear(4 *",
    },
    "edge_in_five_minutes": {'"steps=1500"': '"steps=150"'},
}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]  # strict: a warning is an error
    curvature = (tmp_path / "api/curvature/index.html").read_text()
    assert "top_eigenpairs" in curvature and "Knyazev" in curvature
    assert (tmp_path / "results/studies/tug_of_war/cross_response.png").is_file()


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_was_committed_with_what_it_shows(
    tutorial: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nbclient", reason="the docs extra is not installed")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(tutorial.read_text(), 4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code), "commit it executed"
    # budgets are not what is tried here: that the cells run, and write what they read, is
    suite = {'"suite=smoke"': f'"suite={_shorter_suite(tmp_path)}"'}
    for long, short in SHORTER.get(tutorial.stem, suite).items():
        assert any(long in cell.source for cell in code)
        for cell in code:
            cell.source = cell.source.replace(long, short)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    text = json.dumps(notebook)
    assert "Traceback" not in text and "optbench: " not in text


def _shorter_suite(folder: Path) -> Path:
    """`suite=smoke` with fewer points and seeds and a tenth of the steps, by the same name."""
    suite = yaml.safe_load((ROOT / "conf" / "suite" / "smoke.yaml").read_text())
    suite |= {"points": 2, "final_seeds": suite["final_seeds"][:2]}
    for task in suite["tasks"].values():
        task["run"] = [re.sub(r"^(steps=\d+)0$", r"\1", word) for word in task["run"]]
        assert any(word in ("steps=20", "steps=12") for word in task["run"])
    file = folder / "smoke.yaml"
    file.write_text(yaml.safe_dump(suite))
    return file


def test_three_tutorials() -> None:
    assert len(TUTORIALS) == 3


@pytest.mark.parametrize("picture", sorted(FOLDER.glob("*.png")), ids=lambda path: path.stem)
def test_a_picture_is_of_its_tables(picture: Path) -> None:
    assert is_current(picture), "say python -m docs.edge_picture or docs.tool_pictures renew=true"
    assert picture.stat().st_size < 150_000
    assert all(table.stat().st_size < 100_000 for table in tables_of(picture))


def test_every_image_is_a_picture_that_a_module_makes_or_a_table_of_one() -> None:
    pictures = [FOLDER / f"{drawing.name}.png" for drawing in tool_pictures.DRAWINGS]
    pictures.append(edge_picture.PICTURE)
    tables = [table for picture in pictures for table in tables_of(picture)]
    assert sorted(FOLDER.iterdir()) == sorted([*pictures, *tables])


def test_a_drawing_is_what_its_commands_draw_with_a_table_of_what_it_shows(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    runs = "results/runs/quadratic-*"
    drawing = tool_pictures.Drawing(
        "pair",
        "A pair",
        "of runs",
        (
            "python -m optbench --multirun task=quadratic steps=12 seed=0,1 picture=false",
            f"python -m optbench.report {runs}",
        ),
        "report.png",
        tool_pictures.lines_of_groups(runs),
    )
    tool_pictures.make(drawing, tmp_path, images)
    assert is_current(images / "pair.png")
    assert "loss,sgd (2 runs)," in (images / "pair.csv").read_text()
    drawn, kept = (plt.imread(file) for file in (tmp_path / "report.png", images / "pair.png"))
    assert float(abs(drawn[..., :3] - kept[..., :3]).max()) < 0.1, "its colours are the command's"
    (images / "pair-more.csv").write_text("another table\n")
    assert not is_current(images / "pair.png")


def test_an_edges_picture_says_its_table(tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("\n".join(TABLE.read_text().splitlines()[:-1]))
    edge_picture.draw(shorter, tmp_path / "shorter.png")
    assert drawn_from(tmp_path / "shorter.png") == digest(shorter) != digest(TABLE)


def test_the_pages_made_from_results_are_current() -> None:
    readme = build.README.read_text()
    assert readme == build.with_board(readme), "say python -m docs.build"
    atlas = build.ATLAS.read_text()
    assert atlas == build.with_entries(atlas), "say python -m docs.build"
    assert build.GALLERY.read_text() == gallery_page.render(), "say python -m docs.build"
    assert readme.split(build.BEGIN)[1].split(build.END)[0].count("\n") == 2 + build.ROWS
