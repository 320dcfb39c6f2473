"""A folder may be called whatever a file system allows: what we hand to Hydra comes back as it was."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from optbench.boundary.overrides import as_given, quoted, quoted_path, with_optional
from optbench.configuration.compose import compose_config, options_first, with_paths
from optbench.errors import UserError
from optbench.protocol.suite import read_suite
from tests.conftest import Command

PARSER = OverridesParser.create()
AWKWARD = st.text(alphabet="\\'\"${}ab1e.-_+ ,=:[]()#\n\tëλ\udc80%*@?|~&!;/", max_size=9)
NUMBERS = st.text(alphabet="0123456789eE.+-_infaNulTtrs", max_size=8)
NAMES = [
    *(
        "zoë",
        "a,b",
        "a=b",
        "a (1)",
        "123",
        "1e3",
        "null",
        "True",
        "with space",
        "it's",
        'a"b',
        "$HOME",
        "${seed}",
    ),
    *("#1", "a{b", "trailing\\", "\\'", "~", "@x", "[a]", "日本", "-x", " lead", "a%20", "x:y"),
]


def _read(text: str) -> str:
    """What the configuration holds, after Hydra's parser and OmegaConf's interpolation, directly and by reference."""
    override = PARSER.parse_override(f"results_dir={text}")
    assert not override.is_sweep_override()
    config = OmegaConf.create({"results_dir": "", "other": "${results_dir}"})
    OmegaConf.update(config, "results_dir", override.value())
    assert config.other == config.results_dir
    assert isinstance(config.results_dir, str)
    return config.results_dir


@settings(max_examples=150, deadline=None)
@given(st.one_of(AWKWARD, NUMBERS, st.text(max_size=8)).filter(lambda text: text != "???"))
@example("./???").via("a folder whose name alone would be a missing value")
@example("????")
def test_any_text_is_read_as_itself(text: str) -> None:
    assert _read(quoted(text)) == text
    assert PARSER.parse_override(f"a={{k:{quoted(text)},l:1}}").value() == {"k": _raw(text), "l": 1}
    assert PARSER.parse_override(f"a=[{quoted(text)},x]").value() == [_raw(text), "x"]


def test_what_stands_for_a_missing_value_is_refused_but_as_a_folder() -> None:
    with pytest.raises(
        UserError, match=r"no setting can be \?\?\?, which stands for a missing one"
    ):
        quoted("???")
    assert _read(quoted_path("???")) == "./???" and quoted_path("a b") == quoted("a b")
    for spelled in ("results_dir=???", "results_dir='???'"):
        assert compose_config(with_paths([spelled])).results_dir == "./???"


def _raw(text: str) -> object:
    return PARSER.parse_override(f"a={quoted(text)}").value()


@pytest.mark.parametrize("text", ["results", "/tmp/a-b/c_d.e", "small-v1", "0123abcd", "cuda"])
def test_what_needs_no_quotes_gets_none(text: str) -> None:
    assert quoted(text) == text


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("a,b", "it's", "${seed}", " lead")]
)
def test_a_path_on_the_command_line_that_hydra_would_not_read_as_text_is_quoted(name: str) -> None:
    """Where Hydra reads a text, its own rules hold: commas make a sweep, a backslash escapes."""
    [argument] = with_paths([f"results_dir={name}"])
    assert _read(argument.partition("=")[2]) == name


def test_what_is_no_path_stays_as_it_is() -> None:
    given = [
        "seed=2026",
        "task.text=null",
        "results_dir=a,b",
        "results_dir='1'",
        "--multirun",
        "results_dir",
    ]
    assert with_paths(given) == given


def test_a_run_in_a_folder_that_is_called_like_a_number(optbench: Command) -> None:
    outcome = optbench(
        "task=quadratic", "steps=1", "probes=none", "picture=false", "results_dir=2026"
    )
    assert outcome.code == 0 and outcome.folder.parts[0] == "2026", outcome.err


@pytest.mark.parametrize("name", NAMES)
def test_yamls_of_ones_own_are_found_in_any_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.125\n")
    assert compose_config(["optimizer=mine"], tmp_path / name).optimizer.lr == 0.125


def test_a_suite_may_be_called_like_a_number(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parent.parent / "conf/suite/smoke.yaml"
    file = tmp_path / "2026.yaml"
    file.write_text(source.read_text())
    suite = read_suite(str(file))
    config = compose_config(suite.command("sgd", suite.tuned[0], "tune", 0, (), 0))
    assert config.board.suite == "2026"


@pytest.mark.parametrize(
    "word", ["probes.layers.every=never", "steps=3", "++steps=3", "a=probes.x.every=1"]
)
def test_a_cadence_is_given_anew_and_recorded_as_it_was(word: str) -> None:
    assert with_optional(word) == ("++" * word.startswith("probes.")) + word
    assert as_given(with_optional(word)) == word


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a=1 --config-dir my_conf b=2", "--config-dir my_conf a=1 b=2"),
        ("a=1 -m b=1,2 -cd x=y c=3", "-m -cd x=y a=1 b=1,2 c=3"),
        ("a=1 --config-dir=my_conf b=2", "--config-dir=my_conf a=1 b=2"),
        ("a=1 b=2", "a=1 b=2"),
        ("--multirun", "--multirun"),
    ],
)
def test_an_override_behind_an_option_is_taken(given: str, expected: str) -> None:
    assert options_first(given.split()) == expected.split()
