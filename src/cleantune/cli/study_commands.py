"""The verbs `evaluate`, `spectrum`, `pretrain` and `transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.data import DataConfig
from cleantune.errors import UserError
from cleantune.functional.spectrum import PRESETS

SPLITS = ("all", "train", "validation", "test")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ood", multiple=True, help="Data of other domains; repeatable. [default: none]", metavar="DATA")
@click.option("--domain-column", help="Column that divides these data into domains. [default: none]", metavar="COL")
@click.option("--text", help="Column of texts in these data. [default: guessed]", metavar="COL")
@click.option("--image", help="Column of images in these data. [default: guessed]", metavar="COL")
@click.option("--label", help="Column of labels in these data. [default: guessed]", metavar="COL")
@click.option(
    "--map",
    "class_map",
    type=click.Path(path_type=Path),
    help='TOML file of lines such as "tabby cat" = "cat", from classes of the run to labels. [default: none]',
)
@click.option("--subset", is_flag=True, help="Only classes that occur in a domain compete there. [default: off]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Table to write as well, .parquet or .csv. [default: none]"
)
def evaluate(runs: tuple[Path, ...], ood: tuple[str, ...], out: Path | None, **said: Any) -> None:
    """Measure finished runs on their own test split and on other domains; one row a run and domain.

    Several RUNS of one method, such as three seeds, give means with their standard deviation.
    """
    from cleantune.storage.files import write_table
    from cleantune.studies.evaluate import evaluate as measure
    from cleantune.studies.evaluate import table

    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise UserError(f"--out {out}: the table is written as .parquet or .csv")
    frame = measure(runs, ood, quiet=False, **said)
    if not len(frame):
        raise UserError("there is nothing to measure: the run has no test split; name other data with --ood")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save = frame.to_parquet if out.suffix == ".parquet" else frame.to_csv
        write_table(out, lambda path: save(path, index=False))
    click.echo(table(frame))


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--model", "models", multiple=True, help="Checkpoint folder or hub id; repeatable. [default: none]", metavar="MODEL"
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Finished run, of which the features that its classifier sees are measured; repeatable. [default: none]",
)
@click.option("--split", type=click.Choice(SPLITS), default="all", show_default=True, help="Whose features.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="official",
    show_default=True,
    help="official: rows of length 1 without their own mean; paper: features as they are.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of table and page. [no default]")
@options.SILENT
@options.of(DataConfig, ModelConfig)
def spectrum(data: tuple[str, ...], models: tuple[str, ...], quiet: bool, **said: Any) -> None:
    """Singular values of the features of models on data: entropy, dominant share, effective rank, and a page.

    DATA are one or several image folders, tables, embeddings (.npz) or Hugging Face data sets.
    """
    from cleantune.studies.spectrum import study
    from cleantune.utils.console import Console

    done = study(data, models, console=Console(quiet), **{k: v for k, v in said.items() if v is not None})
    table = done.table[["data", "model", "samples", "width", "sve", "lsvr", "dominant_share", "effective_rank"]]
    click.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    click.echo(f"report: {done.report}")


@click.command()
@click.argument("data", required=False)
@click.option(
    "--backbone",
    default="resnet-small",
    show_default=True,
    help="Recipe (resnet-small, resnet-18, resnet-50), or a transformers folder or hub id, its weights drawn anew.",
    metavar="NAME",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run. [no default]")
@click.option("--epochs", type=int, help="Passes over the images. [default: 15]", metavar="N")
@click.option("--seed", type=int, help="Of initial weights, order, views and noise. [default: 0]", metavar="N")
@options.setting("Any field, as method.tune.learning_rate=0.001")
@options.resume("run")
@options.overwrite("run")
@options.SILENT
@options.of(
    DataConfig,
    ModelConfig,
    RunConfig,
    left_out={"head_init", "model_selection", "fallback_to_probe", "views", "validation_fraction"},
)
def pretrain(settings: tuple[str, ...], epochs: int | None, **said: Any) -> None:
    """Train a backbone from random weights on labels that may be wrong; OUT/model is a transformers folder.

    --noise symmetric:GAMMA flips exactly that share of every class to other classes, as the study of noise in
    pre-training does; more words, as in symmetric:0.2,include_self=true, are taken as they are.
    """
    from cleantune.studies.pretrain import pretrain as run

    pairs = [*settings, *([f"method.tune.epochs={epochs}"] if epochs is not None else [])]
    done = run(settings=pairs, **{k: v for k, v in said.items() if v is not None})
    accuracy = done.summary["accuracy"]["test"]
    click.echo(f"test accuracy  {'not measured' if accuracy is None else f'{accuracy:.1%}'}")
    click.echo(f"backbone       {done.model}")


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the study. [no default]")
@click.option("--synthetic", is_flag=True, help="Rehearse on made-up data and tiny random networks. [default: off]")
@click.option("--model", multiple=True, metavar="NAME=PATH", help="Where a model is. [default: as the study says]")
@click.option("--data", multiple=True, metavar="NAME=PATH", help="Where a task's data are. [default: as it says]")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1. [default: the study's]")
@click.option("--quiet", is_flag=True, help="Print the tables and nothing before them. [default: off]")
def transfer(study: Path, out: Path, synthetic: bool, seeds: int | None, quiet: bool, **places: Any) -> None:
    """What frozen backbones are worth on tasks in and out of domain, by which tuning: a TOML file as in runs/paper.

    What is finished in OUT is kept, so the same command goes on where it was stopped.
    """
    from dataclasses import replace

    from cleantune.studies.transfer import placed, read, rehearsed, run
    from cleantune.utils.console import Console

    made = placed(read(study), places["model"], places["data"])
    made = replace(made, seeds=tuple(range(seeds))) if seeds else made
    if synthetic:
        made = rehearsed(made, out / "stand-in")
    run(made, out, console=Console(quiet), cache=str(out / "cache") if synthetic else None)
    click.echo((out / "results.md").read_text(encoding="utf-8"))
