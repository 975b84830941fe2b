"""Integer or named labels to the int32 class ids that every table uses."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types

from cleanscale.errors import DataError

UNKNOWN, MISSING = -1, -2  # what `encode` writes where there is no class id
_MAX_ID = 2**31 - 1
_MOST_EMPTY = 10_000_000
_MERGED_TOGETHER = 1 << 22  # labels that may wait before they are made distinct


def distinct_labels(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Distinct labels of one piece of the training data, in no order; the pieces' arrays make a LabelMap."""
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    found = column.unique().drop_null()
    return found.filter(pc.not_equal(found, "")) if is_text(found.type) else found


def merged_labels(pieces: Iterable[pa.Array]) -> list[pa.Array]:
    """The distinct labels of many pieces, an array for each kind of label, holding few pieces at a time."""
    kinds: dict[bool, list[pa.Array]] = {}
    for piece in pieces:
        if not len(piece):
            continue
        waiting = kinds.setdefault(is_text(piece.type), [])
        waiting.append(piece)
        if len(waiting) > 1 and sum(map(len, waiting)) > _MERGED_TOGETHER + len(waiting[0]):
            waiting[:] = [pa.chunked_array(waiting).unique()]
    return [pa.chunked_array(waiting).unique() for waiting in kinds.values()]


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


class ClassNames(Sequence[str]):
    """The names of all classes by id: a sequence of strings that takes the room of their letters."""

    def __init__(self, names: pa.Array | Sequence[str]) -> None:
        self.array: pa.Array = names if isinstance(names, pa.Array) else pa.array(list(names), pa.string())

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.array[index].to_pylist() if isinstance(index, slice) else self.array[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self.array), 4096):
            yield from self.array.slice(first, 4096).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ClassNames):
            return self.array.equals(other.array)
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((len(self), *self[:3]))


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Class ids and their names.

    Named labels get ids by their sorted names (or by the names' given order, as for a Hugging Face ClassLabel).
    Integer labels are their own ids, gaps included; then `names` is None and `ids` (int64, sorted) are those that the
    data has. Any sequences may be given; what is held takes a few bytes for each class.
    """

    names: ClassNames | None
    ids: np.ndarray

    def __init__(self, names: ClassNames | pa.Array | Sequence[str] | None, ids: np.ndarray | Sequence[int]) -> None:
        object.__setattr__(
            self, "names", names if names is None or isinstance(names, ClassNames) else ClassNames(names)
        )
        object.__setattr__(self, "ids", np.asarray(ids, np.int64))

    @classmethod
    def from_distinct(
        cls, pieces: Iterable[pa.Array | Sequence[Any]], class_names: Sequence[str] | None = None
    ) -> LabelMap:
        """From `distinct_labels` of every piece; the result does not depend on how the data is cut."""
        arrays = [piece if isinstance(piece, pa.Array) else pa.array(piece) for piece in pieces]
        values = merged_labels(arrays)
        if len(values) > 1:
            raise DataError(
                "some labels are integers and some are names; expected one kind; cast the column where it differs"
            )
        if values and is_text(values[0].type) and class_names is None:
            names = values[0].cast(pa.string())
            return cls(names.take(pc.array_sort_indices(names)), np.arange(len(names)))
        if class_names is not None:
            if len(set(class_names)) != len(class_names):
                raise DataError("a class name occurs twice; expected one name for each class; rename one of them")
            return cls(class_names, np.arange(len(class_names)))
        ids = np.sort(values[0].to_numpy(zero_copy_only=False).astype(np.int64)) if values else np.empty(0, np.int64)
        ids = ids[(ids >= 0) & (ids <= _MAX_ID)]
        if not len(ids):
            raise DataError(
                "no image has a usable label; expected class names or integers from 0 on; name the right column with "
                "--data.label"
            )
        _check_span(ids)
        return cls(None, ids)

    @property
    def id_bound(self) -> int:
        """One more than the largest class id."""
        return int(self.ids[-1]) + 1

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
        return self._encode_texts(column)

    def encode_text(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """`encode` for text files, where every label is text: a name if there is such a class, else a number."""
        if not is_text(column.type):
            return self.encode(column)
        missing_N = _missing(column)
        named_N = self._encode_texts(column) if self.names is not None else np.full(len(column), UNKNOWN, np.int32)
        label_N = np.where(named_N == UNKNOWN, self._encode_integers(_integers(column)), named_N)
        return np.where(missing_N, MISSING, np.where(label_N == MISSING, UNKNOWN, label_N)).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return {"names": None if self.names is None else list(self.names), "ids": self.ids.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LabelMap:
        """The inverse of `to_json`."""
        return cls(value["names"], value["ids"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelMap) and self.names == other.names and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.names, len(self.ids), self.id_bound))

    def _encode_integers(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        missing_N = np.asarray(column.is_null()).astype(bool)
        value_N = np.asarray(column.fill_null(0)).astype(np.int64)
        if self.id_bound == len(self.ids):  # no gaps
            known_N = (value_N >= 0) & (value_N < self.id_bound)
        else:
            known_N = self.ids[np.minimum(np.searchsorted(self.ids, value_N), len(self.ids) - 1)] == value_N
        return np.where(missing_N, MISSING, np.where(known_N, value_N, UNKNOWN)).astype(np.int32)

    def _encode_texts(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        assert self.names is not None
        place_N = np.asarray(pc.fill_null(pc.index_in(pc.cast(column, pa.string()), self.names.array), UNKNOWN))
        return np.where(_missing(column), MISSING, place_N).astype(np.int32)


def _check_span(ids: np.ndarray) -> None:
    """Memory follows the largest id, of which there is no use where classes are few."""
    bound = int(ids[-1]) + 1
    if bound > _MOST_EMPTY and bound > 100 * len(ids):
        raise DataError(
            f"the {len(ids)} classes have integer labels up to {ids[-1]}; expected ids below {_MOST_EMPTY} or fewer "
            "than 99 of 100 unused: memory follows the largest; number the classes anew, or make the labels text"
        )


def _missing(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.equal(column, ""), True)).astype(bool)


def _integers(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """int64 of texts; null for what is none, or none that a class could have."""
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.match_substring_regex(text, r"^[+-]?[0-9]{1,18}$"), text, None)
    value = pc.cast(pc.replace_substring_regex(text, r"^[+]", ""), pa.int64())
    return pc.if_else(pc.and_(pc.greater_equal(value, 0), pc.less_equal(value, _MAX_ID)), value, None)
