"""glyphs: draw the embedded data set into the run folder, as Parquet files like those a user would bring."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cleanscale.datasets.glyphs import (
    GlyphFile,
    GlyphsSettings,
    class_names,
    glyph_files,
    glyph_rows,
    glyph_verification,
)
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.tables import write_table

EMBEDDED = "glyphs"


@dataclass(frozen=True)
class Job:
    settings: GlyphsSettings
    seed: int
    folder: str


def run(place: Place, folder: str, settings: GlyphsSettings, data: DataSettings) -> DataSettings:
    """Draw the data set and return where it is: the same data settings with places and columns filled in."""
    files = glyph_files(settings)
    stage = open_stage(folder, "glyphs", {"glyphs": settings.model_dump(mode="json"), "run": {"seed": place.seed}}, {})
    if not stage.complete:
        total = sum(f.stop - f.start for f in files)
        with place.timed("glyphs", total), place.progress.step("draw glyphs", total) as step:
            job = Job(settings, place.seed, folder)
            missing = [f for f in files if not uris.exists(uris.join(folder, f.split, f.name))]
            for _, rows in map_shards(draw_file, missing, job):
                step.advance(rows)
            checked = named(settings, glyph_verification(settings, place.seed), "label", "verified_label")
            write_table(stage.path("verification.parquet"), checked)
        stage.finish([{"file": f"{f.split}/{f.name}", "rows": f.stop - f.start} for f in files])
    return places(folder, settings, data)


def places(folder: str, settings: GlyphsSettings, data: DataSettings) -> DataSettings:
    """The data settings of a data set that was drawn into `folder`."""
    clean = uris.join(folder, "clean") if settings.clean_per_class else None
    return data.model_copy(
        update={
            "train": uris.join(folder, "train"),
            "test": uris.join(folder, "test") if settings.test_per_class else None,
            "clean": clean,
            "verification": uris.join(folder, "verification.parquet"),
            "true_label": "true_label",
        }
    )


def draw_file(file: GlyphFile, job: Job) -> int:
    table = glyph_rows(job.settings, job.seed, file.split, file.start, file.stop)
    table = named(job.settings, table, "label", "true_label")
    write_table(uris.join(job.folder, file.split, file.name), table.drop_columns(["verified"]))
    return table.num_rows


def named(settings: GlyphsSettings, table: pa.Table, *columns: str) -> pa.Table:
    """Class names in place of numbers: the labels that a user's data would have."""
    names = pa.array(class_names(settings), pa.string())
    for name in columns:
        table = table.set_column(table.schema.get_field_index(name), name, names.take(table[name].combine_chunks()))
    return table
