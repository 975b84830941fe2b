"""What a served model needs of this package: its modules, found by following imports, and the packages behind them.

cleanscale is on no package index, so every model carries the modules that it runs; nothing else goes with it.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PACKAGE = "cleanscale"
SERVED = ("cleanscale.serving.classifier", "cleanscale.serving.detector")
ROOT = Path(__file__).parents[1]  # the package's own folder


def modules_of(*modules: str) -> dict[str, Path]:
    """These modules and all of this package that they import, at the top or inside functions: name -> file."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name in found or file is None:
            continue
        found[name] = file
        waiting += [n for n in imports_of(file) if n.split(".")[0] == PACKAGE]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return dict(sorted(found.items()))


def requirements_of(module: str) -> list[str]:
    """The distributions that these modules import, pinned to the versions that are installed here."""
    tops = {name.split(".")[0] for file in modules_of(module).values() for name in imports_of(file)}
    homes = metadata.packages_distributions()
    # mlflow is what loads the model, and asks for itself.
    wanted = {"mlflow"} | {homes[top][0] for top in tops - set(sys.stdlib_module_names) - {PACKAGE} if top in homes}
    # A local build (+cpu, +cu130) is the machine's, not the model's.
    return sorted(f"{name}=={metadata.version(name).partition('+')[0]}" for name in wanted)


def copy_modules(folder: Path) -> Path:
    """Copy what any served model runs below `folder`; returns the copy of the package, for MLflow's `code_paths`.

    The same for all kinds: a process that has loaded one model has its modules and finds another's among them.
    """
    for file in modules_of(*SERVED).values():
        target = folder / PACKAGE / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / PACKAGE


def file_of(module: str) -> Path | None:
    """The file of one of our modules; None for a name that is something inside a module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def imports_of(file: Path) -> Iterator[str]:
    """Names of modules (and of things in them, which `file_of` leaves out) that a file imports when it runs."""
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
