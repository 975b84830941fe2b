"""Sweep files: the settings of a run with a few tables of their own."""

from pathlib import Path

import pytest
import tomli_w

from cleanscale.cli import main
from cleanscale.errors import ConfigError
from cleanscale.tuning.settings import load

FILES = sorted((Path(__file__).parents[2] / "tune").glob("*.toml"))
BUDGET = {"budget": {"classes": [0.5, 1.0], "labels_per_class": [5, 10]}}
SPACE = {"space": {"cleannet": {"beta": {"uniform": [0.0, 1.0]}}}}
HEADS = {"space": {"heads": {"epochs": {"choice": [2, 4]}}}}


@pytest.fixture
def write(tmp_path):
    def do(values: dict, name: str = "sweep.toml") -> str:
        (tmp_path / name).write_text(tomli_w.dumps(values))
        return str(tmp_path / name)

    return do


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_of_the_folder_can_be_used(file):
    sweep = load([str(file)])
    assert sweep.tune.name == file.stem
    assert sweep.data.train == "glyphs"
    assert bool(sweep.space) != bool(sweep.budget.classes)


def test_the_folder_has_a_file_for_everything_that_is_promised():
    searched = {name for file in FILES for name in load([str(file)]).dimensions}
    wanted = ("beta", "gamma", "rho", "omega", "learning_rate", "references_per_class")
    assert searched >= {f"cleannet.{name}" for name in wanted} | {"detector.delta"}
    assert "verification_budget.toml" in [file.name for file in FILES]


def test_the_runs_file_lies_below_the_sweeps_sections_and_the_command_line_above(write):
    run = write({"data": {"train": "s3://photos"}, "heads": {"epochs": 3, "batch": 32}, "run": {"seed": 4}}, "run.toml")
    file = write(BUDGET | {"tune": {"run": run}, "heads": {"batch": 64}})
    sweep = load([file, "--run.seed", "5", "--tune.max_concurrent", "1", "--budget.repeats", "3"])
    assert (sweep.data.train, sweep.heads.epochs, sweep.heads.batch, sweep.run.seed) == ("s3://photos", 3, 64, 5)
    assert (sweep.tune.max_concurrent, sweep.budget.repeats) == (1, 3)
    assert sweep.base.heads == sweep.heads
    assert load([file, "--config", write({"data": {"train": "s3://other"}}, "other.toml")]).data.train == "s3://other"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"neither \[space\] nor \[budget\]"),
        (BUDGET | SPACE, r"both \[space\] and \[budget\]"),
        ({"budgets": {}}, r"\[budgets\] in .* is no table of a sweep"),
        ({"trials": 3}, r"is no table of a sweep"),
        ({"budget": {"classes": [1.5], "labels_per_class": [1]}}, r"--budget\.classes has 1\.5; expected shares"),
        ({"budget": {"classes": [1.0], "labels_per_class": [0]}}, r"--budget\.labels_per_class has 0; expected"),
        ({"budget": {"classes": [1.0], "labels_per_class": []}}, r"--budget\.labels_per_class is \[\]; expected"),
        ({"budget": {"classes": [1.0], "labels_per_class": ["x"]}}, r"--budget\.labels_per_class\.0 is 'x'"),
        ({"budget": BUDGET["budget"] | {"repeats": 9}}, r"--budget\.repeats is 9 .* at most as many repeats as folds"),
        (BUDGET | {"tune": {"stop_bad": True}}, r"--tune\.stop_bad is true with \[budget\]"),
        (HEADS | {"tune": {"stop_bad": True}}, r"--tune\.stop_bad is true with detector transfer"),
        (SPACE, r"space\.cleannet\.beta changes nothing that detector transfer looks at; expected one of cleannet"),
        (HEADS | {"detector": {"name": "cleannet"}}, r"space\.heads\.epochs changes nothing"),
        (HEADS | {"detector": {"name": "mlp"}}, r"detector mlp makes signals of its own.*--detector\.compare"),
        (SPACE | {"tune": {"trial": 3}}, r"--tune\.trial is no setting; `cleanscale tune --help`"),
        (SPACE | {"tune": {"trials": 0}}, r"--tune\.trials is 0"),
    ],
)
def test_a_wrong_file_is_one_message_that_names_the_key(write, values, said):
    with pytest.raises(ConfigError, match=said):
        load([write(values)])


def test_without_a_file_the_message_says_what_is_expected(capsys):
    assert main(["tune"]) == 2
    assert "expected `cleanscale tune FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--budget.labels_per_class" in said
    assert "--heads.epochs" in said
