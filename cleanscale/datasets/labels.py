"""Integer or named labels to the int32 class ids that every table uses."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types

from cleanscale.errors import DataError

UNKNOWN, MISSING = -1, -2  # what `encode` writes where there is no class id
_MAX_ID = 2**31 - 1


def distinct_labels(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Distinct labels of one piece of the training data, sorted; the pieces' lists make a LabelMap."""
    if pyarrow.types.is_list(column.type):
        column = pc.list_flatten(column)
    return sorted(value for value in column.unique().to_pylist() if value is not None and value != "")


@dataclass(frozen=True)
class LabelMap:
    """Class ids and their names.

    Named labels get ids by their sorted names (or by the names' given order, as for a Hugging Face ClassLabel).
    Integer labels are their own ids, gaps included; then `names` is None and `ids` are those that the data has.
    """

    names: tuple[str, ...] | None
    ids: tuple[int, ...]

    @classmethod
    def from_distinct(cls, pieces: Iterable[Sequence[Any]], class_names: Sequence[str] | None = None) -> LabelMap:
        """From `distinct_labels` of every piece; the result does not depend on how the data is cut."""
        values = set().union(*pieces)
        kinds = {type(value) for value in values}
        if kinds == {int, str}:
            raise DataError(
                "some labels are integers and some are names; expected one kind; cast the column where it differs"
            )
        if kinds == {str} and class_names is None:
            class_names = sorted(values)
        if class_names is not None:
            if len(set(class_names)) != len(class_names):
                raise DataError("a class name occurs twice; expected one name for each class; rename one of them")
            return cls(tuple(class_names), tuple(range(len(class_names))))
        ids = tuple(sorted(value for value in values if 0 <= value <= _MAX_ID))
        if not ids:
            raise DataError(
                "no image has a usable label; expected class names or integers from 0 on; name the right column with "
                "--data.label"
            )
        return cls(None, ids)

    @property
    def id_bound(self) -> int:
        """One more than the largest class id."""
        return self.ids[-1] + 1

    def name_of(self, label: int) -> str:
        """The class's name, or its number as text."""
        return self.names[label] if self.names is not None else str(label)

    def encode(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """int32 [N] class ids of int64 or string labels; UNKNOWN for no class of ours, MISSING for null or ''."""
        if pa.types.is_null(column.type):
            return np.full(len(column), MISSING, np.int32)
        if pa.types.is_integer(column.type):
            return self._encode_integers(column)
        if self.names is None:
            raise DataError(
                "labels are names here and integers in the training data; expected one kind; cast one of the columns"
            )
        return self._encode_texts(column.to_pylist())

    def encode_text(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """`encode` for text files, where every label is text: a name if there is such a class, else a number."""
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return self.encode(column)
        texts = column.to_pylist()
        label_N = self._encode_texts(texts) if self.names is not None else np.full(len(texts), UNKNOWN, np.int32)
        number_N = self._encode_integers(pa.array([_integer(text) for text in texts], pa.int64()))
        missing_N = np.array([text is None or text == "" for text in texts], bool)
        label_N = np.where(label_N == UNKNOWN, np.where(number_N == MISSING, UNKNOWN, number_N), label_N)
        return np.where(missing_N, MISSING, label_N).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return {"names": None if self.names is None else list(self.names), "ids": list(self.ids)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LabelMap:
        """The inverse of `to_json`."""
        return cls(None if value["names"] is None else tuple(value["names"]), tuple(value["ids"]))

    @cached_property
    def _id_of_name(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names or ())}

    @cached_property
    def _id_C(self) -> np.ndarray:
        return np.array(self.ids, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "ids": self.ids}  # not the look-up tables: a million classes travel often

    def _encode_integers(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        missing_N = (
            column.is_null().to_numpy(zero_copy_only=False)
            if isinstance(column, pa.Array)
            else (column.is_null().to_numpy())
        )
        value_N = np.asarray(column.fill_null(0)).astype(np.int64)
        place_N = np.minimum(np.searchsorted(self._id_C, value_N), len(self._id_C) - 1)
        label_N = np.where(self._id_C[place_N] == value_N, value_N, UNKNOWN)
        return np.where(missing_N, MISSING, label_N).astype(np.int32)

    def _encode_texts(self, texts: list[str | None]) -> np.ndarray:
        ids = self._id_of_name
        return np.array([MISSING if not text else ids.get(text, UNKNOWN) for text in texts], np.int32)


def _integer(text: str | None) -> int | None:
    try:
        value = int(text) if text else None
    except ValueError:
        return None
    return value if value is None or 0 <= value <= _MAX_ID else None
