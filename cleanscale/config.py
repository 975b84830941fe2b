"""Settings of a run: defaults, then a TOML file, then the command line. The stages define them; this composes them."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cleanscale.datasets.generated import GENERATED, GeneratedSettings
from cleanscale.datasets.glyphs import EMBEDDED, GlyphsSettings
from cleanscale.datasets.settings import DataSettings
from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import ConfigError
from cleanscale.models.backbones import BackboneSettings
from cleanscale.stages.settings import (
    ClassIndexSettings,
    DetectorSettings,
    EvaluateSettings,
    FeaturesSettings,
    ReferencesSettings,
    TreatmentSettings,
)
from cleanscale.storage import uris
from cleanscale.tracking import TrackingSettings
from cleanscale.training.classifier import ClassifierSettings
from cleanscale.training.cleannet_settings import CleanNetSettings
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.label_cleaning_settings import CleaningSettings
from cleanscale.training.transforms import AugmentationSettings

SettingsT = TypeVar("SettingsT", bound="Settings")

PROGRAM = "python -m cleanscale.train"
# Tables of a run's settings.toml that say what happened and are no settings.
RECORDS = ("versions", "classes")
RECORDED_PACKAGES = (
    "cleanscale",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "faiss-cpu",
    "faiss-gpu",
    "mlflow",
    "scikit-learn",
    "cleanlab",
    "numpy",
    "pyarrow",
)


class RunSettings(BaseModel):
    """What a run is called and how long it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        None, description="Run folder: a path, s3:// or any fsspec URI [default: runs/<data set name>]."
    )
    seed: int = Field(0, ge=0, description="Everything random follows from it.")
    rounds: int = Field(
        1, ge=1, description="Rounds of classifier, features, CleanNet and relevance before the last weighted training."
    )


class Settings(BaseSettings):
    """All settings of a run."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    glyphs: GlyphsSettings = GlyphsSettings()
    generated: GeneratedSettings = GeneratedSettings()
    backbone: BackboneSettings = BackboneSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    features: FeaturesSettings = FeaturesSettings()
    references: ReferencesSettings = ReferencesSettings()
    cleannet: CleanNetSettings = CleanNetSettings()
    index: ClassIndexSettings = ClassIndexSettings()
    heads: HeadSettings = HeadSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    detector: DetectorSettings = DetectorSettings()
    treatment: TreatmentSettings = TreatmentSettings()
    cleaning: CleaningSettings = CleaningSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    engine: EngineSettings = EngineSettings()
    tracking: TrackingSettings = TrackingSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: no environment variable changes a run unseen."""
        return (init_settings,)

    @property
    def run_uri(self) -> str:
        """The run folder: as given, or runs/<name of the data>; a local one as an absolute path."""
        if self.run.uri is not None:
            return uris.absolute(self.run.uri)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path((self.data.train or "run").rstrip("/")).stem.strip("*"))
        return uris.absolute(f"runs/{name or 'run'}")

    def with_absolute_places(self) -> Self:
        """The same with every local path absolute: workers of a run have working directories of their own."""
        names = ("train", "test", "verification", "clean")
        given = {name: getattr(self.data, name) for name in names}
        data = {
            n: uris.absolute(uri) for n, uri in given.items() if uri is not None and uri not in (EMBEDDED, GENERATED)
        }
        run = {"uri": self.run_uri} if self.run.uri is not None else {}
        keep = self.backbone.weights in ("", "pretrained")
        backbone = {} if keep else {"weights": uris.absolute(self.backbone.weights)}
        return self.model_copy(
            update={
                "run": self.run.model_copy(update=run),
                "data": self.data.model_copy(update=data),
                "backbone": self.backbone.model_copy(update=backbone),
            }
        )


def load(arguments: Sequence[str]) -> Settings:
    """Settings from command line arguments such as ["--config", "my.toml", "--data.train", "s3://..."].

    Without --config and --data.train it is the embedded glyphs run. `--help` prints all settings and exits.
    Raises: ConfigError that names every setting that cannot be used.
    """
    return validate(gather(arguments, {}, Settings, f"{PROGRAM} [--config FILE]"))


def gather(arguments: Sequence[str], above: dict[str, Any], kind: type[Settings], program: str) -> dict[str, Any]:
    """Nested values of a settings file (or of the embedded run), with `above` over it and the command line over all.

    kind: the class whose settings the command line may name. program: what --help calls the command.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=None, metavar="FILE")
    known, rest = first.parse_known_args(list(arguments))
    rest = [piece for argument in rest for piece in split_assignment(argument)]
    embedded = known.config is None and "--data.train" not in rest and "train" not in above.get("data", {})
    values = embedded_defaults() if embedded else read_toml(known.config) if known.config else {}
    return merge(merge(values, above), command_line(rest, kind, program))


def validate(values: dict[str, Any], kind: type[SettingsT] = Settings, program: str = PROGRAM) -> SettingsT:
    """Settings from nested plain values. Raises: ConfigError."""
    try:
        settings = kind(**values)
    except ValidationError as error:
        raise ConfigError(in_words(error, program)) from error
    if settings.data.train is None:
        raise ConfigError(
            "no data is named; expected --data.train or train under [data]; 'glyphs' is the embedded data set"
        )
    return settings.with_absolute_places()


def embedded_defaults() -> dict[str, Any]:
    return tomllib.loads(resources.files("cleanscale.datasets").joinpath("glyphs.toml").read_text())


def read_toml(uri: str) -> dict[str, Any]:
    """Raises: ConfigError for a file that is not TOML; DataError for one that cannot be read."""
    try:
        values = tomllib.loads(uris.read_bytes(uri).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{uri} is not TOML ({error}); expected lines such as 'seed = 1' under '[run]'; correct it"
        ) from error
    return {name: value for name, value in values.items() if name not in RECORDS}


def split_assignment(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--") and "=" in argument else [argument]


def command_line(arguments: list[str], kind: type[Settings], program: str) -> dict[str, Any]:
    """Nested values of `--section.name value`; a switch without a value means true."""
    switches = {
        f"--{section}.{name}"
        for section, field in kind.model_fields.items()
        if isinstance(field.default, BaseModel)
        for name, inner in type(field.default).model_fields.items()
        if inner.annotation is bool
    }
    explicit: list[str] = []
    for position, argument in enumerate(arguments):
        explicit.append(argument)
        bare = position + 1 == len(arguments) or arguments[position + 1].startswith("--")
        if argument in switches and bare:
            explicit.append("true")
    try:
        source = CliSettingsSource(
            kind,
            cli_prog_name=program,
            cli_parse_args=explicit,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_parse_none_str="none",
        )
        return source()
    except SettingsError as error:
        found = str(error).removeprefix("error parsing CLI: ")
        raise ConfigError(
            f"{found}; expected settings as '--section.name value'; `{program.split(' [')[0]} --help` lists them"
        ) from error


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested values where `above` wins."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def in_words(error: ValidationError, program: str = PROGRAM) -> str:
    """Every problem on a line of its own: setting, what was found, what was expected."""
    lines = []
    for problem in error.errors():
        name = "--" + ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name} is no setting; `{program} --help` lists them")
        else:
            lines.append(f"{name} is {problem['input']!r}; {problem['msg'].replace('Input should be', 'expected')}")
    return "\n".join(lines)


def resolved_toml(settings: Settings, class_names: Sequence[str] | None = None) -> bytes:
    """The settings as used, the versions of what ran, and the names of the classes: a run folder's settings.toml."""
    document = plain(settings)
    document["versions"] = versions()
    if class_names is not None:
        document["classes"] = {"names": list(class_names)}
    return tomli_w.dumps(document).encode()


def plain(settings: Settings) -> dict[str, Any]:
    """All settings as used, as nested values that TOML can hold."""
    document = without_none(settings.model_dump(mode="json"))
    document["run"]["uri"] = settings.run_uri
    # Loaded again, every value here counts as given: what a preset set must stand in it, what gives way must not.
    document["cleannet"] = without_none(settings.cleannet.resolved().model_dump(mode="json"))
    if "epochs" not in settings.classifier.model_fields_set:
        del document["classifier"]["epochs"]
    return document


def versions() -> dict[str, str]:
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def without_none(value: Any) -> Any:
    """TOML has no null: an unset setting is left out."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return value
