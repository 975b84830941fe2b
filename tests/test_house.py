"""The house is in order: imports, names, the README and the settings say what is true."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

import cleanscale

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(cleanscale.__path__, "cleanscale."))


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def committed_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_import_rules_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_every_module_starts_nothing(tmp_path):
    code = f"""
import importlib, multiprocessing, sys
for name in {MODULES!r}:
    importlib.import_module(name)
assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized(), "Ray was started"
assert "mlflow" not in sys.modules or sys.modules["mlflow"].active_run() is None, "an MLflow run was started"
assert not multiprocessing.active_children(), "processes were started"
"""
    assert run_python(code, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_the_package_itself_needs_neither_ray_nor_mlflow(tmp_path):
    loaded = run_python("import cleanscale, sys; print({'ray', 'mlflow'} & set(sys.modules))", tmp_path)
    assert loaded.strip() == "set()"


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert getattr(cleanscale, "__version__", project["version"]) == project["version"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned():
    def bare(requirement: str) -> str:
        return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+", line) for line in lines)
    wanted = {bare(each) for each in project["dependencies"]}
    wanted |= {bare(each) for extra in project["optional-dependencies"].values() for each in extra}
    assert wanted <= {line.split("==")[0] for line in lines}


def test_no_committed_file_names_a_place_that_only_one_machine_has():
    # Put together here, so that this file does not name them either.
    places = "|".join(["work", "tmp", "opt", "root"])
    hosts = "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "npmjs" + r"\.org", "index-" + "url"])
    forbidden = re.compile(rf"(?<![\w.~}}$/)-])/(?:{places})(?![\w-])|{hosts}")
    found = []
    for path in committed_files():
        if path.suffix in {".png", ".parquet", ".jpg", ".npz"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if hit := forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {hit[0]}")
    assert found == []


def test_modules_are_named_for_what_they_do():
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert [name for name in MODULES if vague & set(re.split(r"[._]", name))] == []


def settings_classes() -> list[type[BaseModel]]:
    kinds = {
        kind
        for name in MODULES
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if issubclass(kind, BaseModel) and kind.__module__.startswith("cleanscale.") and "Settings" in kind.__name__
    }
    return sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__))


def test_every_setting_is_described():
    kinds = settings_classes()
    assert kinds
    silent = []
    for kind in kinds:
        for name, field in kind.model_fields.items():
            nested = inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
            said = field.description or (field.annotation.__doc__ if nested else None) or ""
            if not said.strip():
                silent.append(f"{kind.__name__}.{name}")
    assert silent == []


def test_settings_are_frozen_and_refuse_unknown_names():
    loose = [
        kind.__name__
        for kind in settings_classes()
        if not (kind.model_config.get("frozen") and kind.model_config.get("extra") == "forbid")
    ]
    assert loose == []


def tree_of(readme: str) -> list[str]:
    """Paths named in the README's file tree: indented four spaces, two more for each folder."""
    block = readme.split("## Files\n", 1)[1].split("\n## ", 1)[0]
    paths, folders = [], []
    for line in block.splitlines():
        if not (entry := re.match(r"    ( *)(\S+)", line)):
            continue
        depth, name = len(entry[1]) // 2, entry[2]
        if depth > len(folders):  # the second line of a description
            continue
        del folders[depth:]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_the_readmes_file_tree_is_true():
    named = tree_of((ROOT / "README.md").read_text())
    assert len(named) > 1
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readmes_file_tree_is_complete():
    named = tree_of((ROOT / "README.md").read_text())
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("cleanscale/**/*.py") if path.name[0] != "_"}
    # A folder whose files the tree does not list one by one stands for all of them.
    whole = tuple(f for f in named if f.endswith("/") and not any(p != f and p.startswith(f) for p in named))
    missing = sorted(module for module in modules - set(named) if not module.startswith(whole))
    assert missing == [], f"README.md, 'Files', lacks a line for each of {', '.join(missing)}"


def test_every_link_of_the_readme_leads_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "clusters/README.md"):
        folder = (ROOT / page).parent
        links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
        assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


def test_the_readmes_example_finds_the_wrong_labels():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    wrong_N = names["labels_N"] != names["true_N"]
    assert (names["found"]["mislabeled"].to_numpy() != wrong_N).mean() < 0.1


def test_the_table_of_settings_is_that_of_the_code():
    made = run_python((ROOT / "docs/settings_table.py").read_text(), ROOT)
    assert made == (ROOT / "docs/settings.md").read_text(), "run `make docs`"
