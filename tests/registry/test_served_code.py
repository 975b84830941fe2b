"""A registered model runs with its declared requirements alone: neither Ray nor this package need be there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
from packaging.requirements import Requirement

from cleanscale.registry import served_code

# Loads a model where only some packages can be imported, and prints what it says of its own input example.
ALONE = """
import json, sys
allowed = set(json.loads(sys.argv[2])) | set(sys.stdlib_module_names)

class Only:  # a finder that does not see what is not allowed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top.startswith("_"):
            return self.finder.find_spec(name, path, target)
        return None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict(model.input_example)
import cleanscale
for name in ("ray", "cleanscale.engine", "cleanscale.stages", "cleanscale.storage", "cleanscale.registry"):
    assert name not in sys.modules, name
print(json.dumps({"home": cleanscale.__file__, "found": found.to_dict("records")}))
"""


def names_of(requirements: list[str]) -> set[str]:
    """Distributions that installing these brings, by the metadata of what is installed here."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        wanted = [Requirement(text) for text in needs]
        extras = one.extras or {""}
        waiting += [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", ["small-classifier", "small-detector"])
def test_a_model_needs_no_package_that_it_does_not_declare(model, registered, store, tmp_path):
    """Slow: a process of its own imports torch, timm and MLflow."""
    assert store.client
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}@champion"))
    declared = [line for line in (folder / "requirements.txt").read_text().splitlines() if line]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in declared)
    brought = names_of(declared)
    assert "ray" not in brought
    homes = metadata.packages_distributions().items()
    allowed = {top for top, owners in homes if {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & brought}
    allowed |= {"cleanscale", "sitecustomize", "usercustomize"}
    command = [sys.executable, "-P", "-c", ALONE, str(folder), json.dumps(sorted(allowed))]
    done = subprocess.run(command, cwd=tmp_path, env=without_package(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["home"]).is_relative_to(folder)
    assert [row["error"] for row in said["found"]] == [None]


def without_package() -> dict[str, str]:
    """The environment without ways to this checkout."""
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_modules_that_travel_are_those_that_serving_imports():
    modules = served_code.modules_of(*served_code.SERVED)
    assert {"cleanscale", "cleanscale.errors", "cleanscale.models.classifier", "cleanscale.detectors"} <= set(modules)
    packages = {name.split(".")[1] for name in modules if "." in name}
    assert not packages & {"engine", "stages", "storage", "registry", "tracking", "config", "pipeline", "cli"}
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(served_code.SERVED)}; print(*sys.modules)"],
        cwd=served_code.ROOT.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()
    assert {name for name in loaded if name.split(".")[0] == "cleanscale"} <= set(modules)


def test_requirements_are_pinned_to_what_is_installed():
    found = dict(line.split("==") for line in served_code.requirements_of(served_code.SERVED[0]))
    assert {"mlflow", "torch", "timm", "pillow", "numpy", "pandas", "safetensors"} <= set(found)
    assert not {"ray", "s3fs", "scikit-learn", "matplotlib"} & set(found)
    assert found["numpy"] == metadata.version("numpy")


def test_names_imported_only_for_types_do_not_travel(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport numpy as np\nif TYPE_CHECKING:\n    import ray\n"
        "def later():\n    from cleanscale.maths import evidence\n"
    )
    assert set(served_code.imports_of(file)) == {
        "typing", "typing.TYPE_CHECKING", "numpy", "cleanscale.maths", "cleanscale.maths.evidence",
    }  # fmt: skip
