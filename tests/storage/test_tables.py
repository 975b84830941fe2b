import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.errors import DataError
from cleanscale.storage.tables import read_table, write_table

TABLE = pa.table({"row": pa.array([3, 1, 2], pa.int64()), "label": pa.array([0, 5, 5], pa.int32())})


@pytest.mark.parametrize("place", ["{tmp}/deep/er/table.parquet", "memory://tables/table.parquet"])
def test_a_table_comes_back_as_it_was(place, tmp_path):
    uri = place.format(tmp=tmp_path)
    written = write_table(uri, TABLE)
    assert written > 0
    assert read_table(uri).equals(TABLE)
    assert read_table(uri, ["label"]).column_names == ["label"]


def test_tables_of_one_schema_become_a_row_group_each(tmp_path):
    path = tmp_path / "groups.parquet"
    write_table(str(path), [TABLE.slice(0, 1), TABLE.slice(1)], metadata={b"who": "me"})
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [1, 2]
    assert file.schema_arrow.metadata[b"who"] == b"me"


def test_an_empty_table_keeps_its_columns(tmp_path):
    uri = str(tmp_path / "empty.parquet")
    write_table(uri, TABLE.slice(0, 0))
    assert read_table(uri).schema.equals(TABLE.schema)


def test_nothing_else_is_left_beside_a_table(tmp_path):
    write_table(str(tmp_path / "table.parquet"), TABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_a_table_that_is_not_there_is_the_users_error(tmp_path):
    with pytest.raises(DataError, match="nothing found"):
        read_table(str(tmp_path / "missing.parquet"))
