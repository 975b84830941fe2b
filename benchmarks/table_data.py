"""The data sets of benchmarks/tables.py, their classes' families, and who gets which verification labels.

# N images, C classes, V verified images
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cleanscale.storage.tables import write_table

SHARED = Path("../shared")
OMNIGLOT_WRONG, OMNIGLOT_ALIKE = 0.3, 0.5  # share of wrong labels; of them, the share that stays in the alphabet


@dataclass(frozen=True)
class DataSet:
    """What is run, and how many labels of a verified class somebody looks at."""

    name: str
    settings: tuple[str, ...]
    per_class: int  # in the tables that hold whole classes out
    files: tuple[Path, ...]  # without them it is left out, and that is said

    def families(self, class_C: np.ndarray) -> np.ndarray | None:
        """int [C]: superclass of each class number; None where classes have none."""
        if self.name == "cifar100n":
            table = pq.read_table(SHARED / "data/cifar100n/train.parquet", columns=["true_label", "true_coarse_label"])
            family = dict(zip(table["true_label"].to_pylist(), table["true_coarse_label"].to_pylist(), strict=True))
            return np.array([family[int(c)] for c in class_C])
        if self.name == "omniglot":
            alphabet = alphabets()
            return np.array([alphabet[int(c)] for c in class_C])
        return None


def data_sets(folder: Path) -> dict[str, DataSet]:
    """By name. folder: where inputs that have to be made are put."""
    weights = SHARED / "weights/tf_efficientnet_lite0_fp16.safetensors"
    cifar, omniglot = SHARED / "data/cifar100n", SHARED / "data/omniglot"
    frozen = ("--backbone.name", "tf_efficientnet_lite0", "--backbone.weights", str(weights))
    frozen += ("--backbone.image_size", "96", "--backbone.frozen", "true", "--augmentation.evaluation_crop", "1.0")
    noisy = folder / "omniglot_noisy.parquet"
    given = ("--data.train", str(noisy), "--data.test", str(omniglot / "test.parquet"))
    given += ("--data.true_label", "true_label")
    return {
        one.name: one
        for one in (
            DataSet(
                "cifar100n",
                ("--config", "examples/cifar100n.toml", "--detector.published_steps", "0"),
                250,
                (cifar / "train.parquet", weights),
            ),
            DataSet("glyphs", (), 20, ()),
            DataSet("omniglot", given + frozen, 5, (omniglot / "train.parquet", weights)),
        )
    }


def alphabets() -> dict[int, int]:
    """Number of the alphabet of each character."""
    names = json.loads((SHARED / "data/omniglot/dataset.json").read_text())["classes"]
    number = {name: k for k, name in enumerate(sorted({n.split("/")[0] for n in names}))}
    return {c: number[name.split("/")[0]] for c, name in enumerate(names)}


def write_omniglot(file: Path) -> None:
    """The training images with injected noise: a wrong label is one of two characters that the true one is always taken
    for, both of its alphabet, or any other character."""
    if file.exists():  # written again, it would count as other data
        return
    table = pq.read_table(SHARED / "data/omniglot/train.parquet", columns=["id", "image", "true_label"])
    true_N = table["true_label"].to_numpy()
    family_C = np.array([family for _, family in sorted(alphabets().items())])
    random = np.random.default_rng(0)
    label_N = true_N.copy()
    confused = {}
    for c in range(len(family_C)):
        kin = np.flatnonzero(family_C == family_C[c])
        confused[c] = random.choice(kin[kin != c], 2)
    for n in np.flatnonzero(random.random(len(true_N)) < OMNIGLOT_WRONG):
        alike = random.random() < OMNIGLOT_ALIKE
        others = confused[true_N[n]] if alike else np.delete(np.arange(len(family_C)), true_N[n])
        label_N[n] = random.choice(others)
    write_table(str(file), table.append_column("label", pa.array(label_N.astype(np.int32))))


# ---- who gets verification labels ------------------------------------------------------------------------------------


def shuffled(class_C: np.ndarray, seed: int) -> np.ndarray:
    """The classes in the order in which a seed verifies them."""
    return np.random.default_rng((seed, 1)).permutation(class_C)


def one_of_each_family(class_C: np.ndarray, family_C: np.ndarray, seed: int, classes: int) -> np.ndarray:
    """So many classes, from as many superclasses as there are before a second one of any (the paper's semantic-118)."""
    order = np.random.default_rng((seed, 2)).permutation(len(class_C))
    turn_C = np.empty(len(class_C), np.int64)
    seen: dict[int, int] = {}
    for c in order:
        turn_C[c] = seen[family_C[c]] = seen.get(family_C[c], -1) + 1
    return class_C[order[np.argsort(turn_C[order], kind="stable")]][:classes]


def one_family(class_C: np.ndarray, family_C: np.ndarray, seed: int, classes: int) -> np.ndarray:
    """So many classes from as few superclasses as will do (the paper's dogs-118)."""
    order = np.random.default_rng((seed, 3)).permutation(np.unique(family_C))
    return np.concatenate([class_C[family_C == f] for f in order])[:classes]


def verification(label_N: np.ndarray, true_N: np.ndarray, classes: np.ndarray, per_class: int, seed: int) -> pa.Table:
    """row, label, verified, verified_label of so many images of each of these classes; nobody makes a mistake."""
    rows = []
    for c in np.sort(classes):
        own = np.flatnonzero(label_N == c)
        rows.append(np.random.default_rng((seed, 4, int(c))).permutation(own)[:per_class])
    row_V = np.sort(np.concatenate(rows)).astype(np.int64)
    return pa.table(
        {
            "row": row_V,
            "label": label_N[row_V].astype(np.int32),
            "verified": (label_N[row_V] == true_N[row_V]).astype(np.int8),
            "verified_label": true_N[row_V].astype(np.int32),
        }
    )
