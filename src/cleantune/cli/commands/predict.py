"""The verb `predict`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options
from cleantune.cli.output import check_table_path, write_frame


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Table to write, .parquet or .csv. [default: standard output, as CSV]",
)
@click.option("--text", help="Column of texts. [default: guessed]", metavar="COL")
@click.option("--image", help="Column of images. [default: guessed]", metavar="COL")
@click.option("--id", help="Column of ids. [default: id, else the path, else the row number]", metavar="COL")
@options.VERBOSE
def predict(run: Path, data: str, out: Path | None, **columns: str | None) -> None:
    """Predict with the model of a run: id, predicted label, probability."""
    import pandas as pd

    from cleantune.pipeline.predict import load

    check_table_path(out)
    model = load(run)
    rows = model.read(data, **options.drop_unset(columns))
    p = model.probabilities(rows)
    labels = model.class_values[p.argmax(1)].tolist()
    frame = pd.DataFrame({"id": rows.ids, "predicted_label": labels, "probability": p.max(1).astype("float64")})
    if out is None:
        click.echo(frame.to_csv(index=False), nl=False)
    else:
        write_frame(out, frame)
