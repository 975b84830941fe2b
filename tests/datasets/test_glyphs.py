"""The embedded data set: any rows anywhere, exact noise, known truth."""

import io
import itertools
import tomllib
from importlib import resources

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cleanscale.datasets.glyphs import (
    GLYPHS,
    GlyphsSettings,
    class_names,
    glyph_files,
    glyph_rows,
    glyph_verification,
    num_rows,
)
from cleanscale.errors import ConfigError

SMALL = GlyphsSettings(
    classes=12, train_per_class=15, test_per_class=3, clean_per_class=2, verified_classes=4, verified_per_class=5
)


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


@pytest.fixture(scope="module")
def train() -> pa.Table:
    return glyph_rows(SMALL, 3, "train")


def test_rows_do_not_depend_on_the_ranges_they_are_made_in(train):
    cuts = [0, 1, 20, 21, 64, 100, 179, 180]
    pieces = [glyph_rows(SMALL, 3, "train", start, stop) for start, stop in itertools.pairwise(cuts)]
    assert pa.concat_tables(pieces).combine_chunks().equals(train.combine_chunks())


def test_another_seed_draws_other_pictures_and_labels(train):
    other = glyph_rows(SMALL, 4, "train")
    assert not np.array_equal(column(other, "label"), column(train, "label"))
    assert set(column(other, "image")).isdisjoint(column(train, "image"))


def test_table_has_the_schema_and_distinct_ids_and_pictures(train):
    assert train.schema == GLYPHS
    assert train.num_rows == num_rows(SMALL, "train") == 12 * 15
    assert len(set(column(train, "id"))) == len(set(column(train, "image"))) == 180


def test_pictures_are_colour_pngs_of_the_size(train):
    for image in column(train, "image")[:20]:
        opened = Image.open(io.BytesIO(image))
        opened.load()
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (32, 32))


def test_row_order_is_mixed_over_the_classes(train):
    assert len(set(column(train, "label")[:30])) >= 8


def test_verification_table_says_what_the_column_says(train):
    table = glyph_verification(SMALL, 3)
    looked = column(train, "verified") >= 0
    assert table.num_rows == 4 * 5
    assert column(table, "id").tolist() == column(train, "id")[looked].tolist()
    assert np.array_equal(column(table, "verified"), column(train, "verified")[looked])
    assert np.array_equal(column(table, "verified") == 1, column(table, "label") == column(table, "verified_label"))


@pytest.mark.parametrize(("split", "each"), [("test", 3), ("clean", 2)])
def test_labels_of_the_other_splits_are_all_right(split, each):
    table = glyph_rows(SMALL, 3, split)
    assert np.array_equal(column(table, "label"), column(table, "true_label"))
    assert (np.bincount(column(table, "label")) == each).all()
    assert set(column(table, "verified")) == {-1}
    assert set(column(table, "noise_type")) == {0}


def test_files_cover_every_row_once():
    settings = GlyphsSettings(classes=100, train_per_class=50, test_per_class=25)
    files = glyph_files(settings)
    for split, rows in (("train", 5000), ("test", 2500), ("clean", 0)):
        ranges = [(file.start, file.stop) for file in files if file.split == split]
        assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    assert len({file.name for file in files}) == len(files)


def test_classes_have_readable_names_that_do_not_depend_on_how_many_are_asked():
    names = class_names(SMALL)
    assert len(set(names)) == 12
    assert names == class_names(GlyphsSettings(classes=90))[:12]
    assert all("(U+00" in name for name in names)  # ASCII first


def test_five_thousand_classes_work_and_ten_thousand_are_refused_with_the_number_there_is():
    many = GlyphsSettings(classes=5000, train_per_class=1, verified_classes=0, verified_per_class=0)
    assert glyph_rows(many, 0, "train", 0, 50).num_rows == 50
    with pytest.raises(ConfigError, match=r"found glyphs.classes = 10000; expected at most 5\d\d\d"):
        glyph_files(GlyphsSettings(classes=10_000))


@pytest.mark.parametrize("wrong", [{"verified_classes": 301}, {"train_per_class": 10}])
def test_more_verified_than_there_are_is_a_users_error(wrong):
    with pytest.raises(ConfigError, match="expected no more than there are"):
        GlyphsSettings(**wrong)


def test_unknown_split_is_a_users_error():
    with pytest.raises(ConfigError, match="train, test, clean"):
        num_rows(SMALL, "validation")


def test_pictures_of_a_class_are_more_alike_than_those_of_others():
    """Legible: the nearest mean of other pictures, in light-or-dark-blind form, finds the class far above chance."""
    settings = GlyphsSettings(classes=20, train_per_class=40, wrong=0.0, verified_classes=0, verified_per_class=20)
    table = glyph_rows(settings, 0, "train")
    label_N = column(table, "label")
    ink_NP = np.stack([ink(image) for image in column(table, "image")])
    mean_CP = np.stack([ink_NP[label_N == c][:30].mean(axis=0) for c in range(20)])
    rest = np.concatenate([np.flatnonzero(label_N == c)[30:] for c in range(20)])
    found = (ink_NP[rest] @ (mean_CP / np.linalg.norm(mean_CP, axis=1, keepdims=True)).T).argmax(axis=1)
    assert (found == label_N[rest]).mean() > 0.35  # chance is 0.05


def ink(image: bytes) -> np.ndarray:
    """Distance of each pixel from the median colour, cut to the ink's box and scaled to 16 x 16."""
    pixel_SS3 = np.asarray(Image.open(io.BytesIO(image)), np.float32)
    apart_SS = np.abs(pixel_SS3 - np.median(pixel_SS3, axis=(0, 1))).sum(axis=2)
    mask = apart_SS > 0.5 * np.quantile(apart_SS, 0.98)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return np.asarray(Image.fromarray(np.uint8(mask) * 255).crop(box).resize((16, 16)), np.float32).ravel()


def test_the_embedded_run_is_the_demo_that_the_documentation_describes():
    text = resources.files("cleanscale.datasets").joinpath("glyphs.toml").read_text()
    demo = GlyphsSettings(**tomllib.loads(text)["glyphs"])
    assert demo == GlyphsSettings()
    assert (demo.classes, demo.train_per_class, demo.test_per_class, demo.size) == (300, 60, 10, 32)
    assert (demo.wrong, demo.confusing_share, demo.verified_classes, demo.verified_per_class) == (0.3, 0.5, 60, 20)
