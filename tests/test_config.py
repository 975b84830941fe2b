import tomllib
from pathlib import Path

import pytest

from cleanscale.config import Settings, load, merge, resolved_toml, validate
from cleanscale.errors import CleanscaleError, ConfigError, DataError
from cleanscale.stages.head_classifier import head_settings


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "my.toml").write_text(text)
        return str(tmp_path / "my.toml")

    return write


@pytest.fixture
def reloaded(toml):
    """Settings as a run folder's settings.toml gives them back."""
    return lambda settings: load(["--config", toml(resolved_toml(settings, ["cat", "dog"]).decode())])


def every_field():
    for section, field in Settings.model_fields.items():
        for name, inner in type(field.default).model_fields.items():
            yield section, name, inner


def test_every_setting_says_what_it_is_for():
    assert [f"{s}.{n}" for s, n, field in every_field() if not (field.description or "").strip()] == []


def test_the_settings_that_scripts_rely_on_are_there():
    names = {f"{section}.{name}" for section, name, _ in every_field()}
    scripts = """run.uri run.seed run.rounds data.train data.test data.verification data.true_label data.label
        data.image data.id backbone.name backbone.weights backbone.image_size backbone.frozen classifier.epochs
        references.per_class cleannet.steps cleannet.beta cleannet.gamma cleannet.rho detector.delta treatment.name
        engine.num_workers engine.use_gpu"""
    assert names >= set(scripts.split())


def test_no_argument_means_the_embedded_data_set():
    settings = load([])
    assert settings.data.train == "glyphs"
    assert settings.run_uri == str(Path("runs/glyphs").absolute())


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(toml):
    path = toml('[data]\ntrain = "here"\n[cleannet]\nsteps = 7\nbeta = 0.5\n')
    settings = load(["--config", path, "--cleannet.steps", "9"])
    assert (settings.cleannet.steps, settings.cleannet.beta) == (9, 0.5)
    assert settings.cleannet.gamma == Settings().cleannet.gamma
    assert settings.data.train == str(Path("here").absolute())


def test_values_may_follow_an_equals_sign_and_hold_one():
    settings = load(["--data.train=s3://bucket/key=1/", "--run.seed=3", "--detector.delta=-0.25"])
    assert settings.data.train == "s3://bucket/key=1/"
    assert (settings.run.seed, settings.detector.delta) == (3, -0.25)


def test_a_negative_number_is_a_value():
    assert load(["--detector.delta", "-0.25"]).detector.delta == -0.25


def test_a_switch_without_a_value_means_true():
    assert load(["--backbone.frozen", "--run.seed", "3"]).backbone.frozen
    assert load(["--run.seed", "3", "--backbone.frozen"]).backbone.frozen
    assert not load(["--backbone.frozen", "false"]).backbone.frozen
    assert not load(["--tracking.enabled=false"]).tracking.enabled


def test_none_unsets_a_setting(toml):
    path = toml('[data]\ntrain = "here"\ntest = "there"\n')
    assert load(["--config", path, "--data.test", "none"]).data.test is None


def test_lists_and_pairs_are_understood():
    settings = load(["--cleannet.decay_at", "[10,20]", "--cleannet.reference_widths", "[64,32]"])
    assert settings.cleannet.decay_at == (10, 20)
    assert settings.cleannet.reference_widths == (64, 32)


def test_environment_variables_change_nothing(monkeypatch):
    monkeypatch.setenv("RUN", '{"seed": 9}')
    monkeypatch.setenv("RUN__SEED", "9")
    assert load([]).run.seed == 0


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--cleannet.stepz", "3"], "cleannet.stepz"),
        (["--nonsense", "3"], "nonsense"),
        (["stray"], "stray"),
        (["--cleannet.steps", "many"], "--cleannet.steps is 'many'"),
        (["--cleannet.steps", "0"], "--cleannet.steps is '0'"),
        (["--treatment.name", "magic"], "--treatment.name is 'magic'"),
        (["--glyphs.classes", "3", "--glyphs.verified_classes", "4"], "glyphs.verified_classes = 4"),
    ],
)
def test_an_unusable_argument_is_named_with_what_was_found(arguments, found):
    with pytest.raises(ConfigError) as caught:
        load(arguments)
    assert found in str(caught.value)


def test_all_unusable_settings_are_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)--run.rounds is '0'.*\n--cleannet.steps is 'many'"):
        load(["--cleannet.steps", "many", "--run.rounds", "0"])


def test_an_unknown_key_of_a_file_is_named(toml):
    with pytest.raises(ConfigError, match=r"--cleannet\.stepz is no setting"):
        load(["--config", toml('[data]\ntrain = "here"\n[cleannet]\nstepz = 7\n')])
    with pytest.raises(ConfigError, match="--clean is no setting"):
        load(["--config", toml('[data]\ntrain = "here"\n[clean]\nsteps = 7\n')])


def test_a_file_that_is_no_toml_or_not_there_is_the_users_error(toml, tmp_path):
    with pytest.raises(ConfigError, match="is not TOML"):
        load(["--config", toml("[data\n")])
    with pytest.raises(DataError, match="nothing found"):
        load(["--config", str(tmp_path / "missing.toml")])


def test_a_file_without_data_says_how_to_name_it(toml):
    with pytest.raises(ConfigError, match=r"--data\.train"):
        load(["--config", toml("[run]\nseed = 1\n")])


def test_a_preset_sets_every_value_that_is_not_given():
    settings = load(["--cleannet.preset", "paper", "--cleannet.beta", "0.5"]).cleannet.resolved()
    assert (settings.steps, settings.optimizer, settings.beta) == (80_000, "sgd", 0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--cleannet.preset", "paper"],
        ["--cleannet.preset", "published_code", "--cleannet.steps", "5", "--cleannet.decay_at", "[3]"],
        ["--data.train", 'some\\where "odd"', "--detector.delta", "0.3", "--run.rounds", "2"],
        ["--backbone.options", '{"output_stride": 8}'],
    ],
)
def test_settings_as_written_give_the_same_run_again(arguments, reloaded):
    settings = load(arguments)
    again = reloaded(settings)
    assert again.cleannet.resolved() == settings.cleannet.resolved()
    assert again.model_copy(update={"cleannet": settings.cleannet, "run": settings.run}) == settings
    assert again.run_uri == settings.run_uri
    assert resolved_toml(reloaded(again)) == resolved_toml(again)


def test_a_frozen_backbone_trains_its_head_as_long_when_the_settings_are_loaded_again(reloaded):
    settings = validate({"data": {"train": "here"}, "heads": {"epochs": 7}})
    again = reloaded(settings)
    assert head_settings(settings.heads, settings.classifier).epochs == 7
    assert head_settings(again.heads, again.classifier).epochs == 7


def test_written_settings_name_versions_and_classes():
    written = tomllib.loads(resolved_toml(load([]), ["cat", "dog"]).decode())
    assert written["classes"]["names"] == ["cat", "dog"]
    assert {"cleanscale", "ray", "torch"} <= set(written["versions"])


def test_the_run_folder_is_called_after_the_data():
    def folder(train: str) -> str:
        return str(Path(validate({"data": {"train": train}}).run_uri).relative_to(Path.cwd()))

    assert folder("s3://bucket/food/") == "runs/food"
    assert folder("data/food.parquet") == "runs/food"
    assert folder("data/f o?d") == "runs/f_o_d"
    assert folder("data/*.parquet").startswith("runs/")


def test_local_places_are_absolute_and_nothing_else_is():
    """Workers have working directories of their own."""
    data = {"train": "a/b", "test": "s3://bucket/test", "verification": "/c.csv", "clean": "memory://clean"}
    settings = validate({"data": data, "run": {"uri": "runs/x"}, "backbone": {"weights": "w.safetensors"}})
    here = Path.cwd()
    assert settings.run.uri == str(here / "runs/x")
    assert settings.data.model_dump(include=set(data)) == data | {"train": str(here / "a/b")}
    assert settings.backbone.weights == str(here / "w.safetensors")
    assert (
        validate({"data": {"train": "glyphs"}, "backbone": {"weights": "pretrained"}}).backbone.weights == "pretrained"
    )


def test_merging_keeps_what_the_upper_layer_does_not_name():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}


def test_every_user_error_has_exit_status_2():
    assert {ConfigError.exit_status, DataError.exit_status} == {2}
    assert issubclass(ConfigError, CleanscaleError)


def test_the_treatment_none_can_be_named_on_the_command_line():
    assert load(["--treatment.name", "none"]).treatment.name == "none"


def test_detectors_to_compare_are_a_list_and_each_is_named_once():
    named = load(["--detector.compare", "mlp,svm", "--detector.compare", "transfer"]).detector.named
    assert named == ("transfer", "mlp", "svm")
    with pytest.raises(ConfigError, match=r"--detector\.compare.*'mpl'"):
        load(["--detector.compare", "mpl"])
