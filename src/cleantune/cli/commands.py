"""The verbs of the command line; options are the fields of the records, with their comments and defaults as help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cleantune.cli import audit_commands as audit_verbs
from cleantune.cli import options, study_commands
from cleantune.cli.compare_command import compare
from cleantune.cli.reproduce_command import reproduce
from cleantune.cli.search_command import search
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.config.schema import FieldInfo, describe_fields
from cleantune.data import DataConfig
from cleantune.distributed.process_group import init_distributed
from cleantune.errors import UserError
from cleantune.methods import METHODS
from cleantune.methods.protocol import Choice, MLPHeadConfig, Range, Stage


@click.command()
@click.argument("data", required=False)
@click.option("--model", help=f"{describe_fields(ModelConfig)[0].help} [default: none]", metavar="MODEL")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run. [no default]")
@click.option("--method", help=f"One of {', '.join(METHODS)}. [default: turn]", metavar="NAME")
@click.option("--scope", type=click.Choice(["head", "all", "lora"]), help="What learns. [default: the method's own]")
@click.option("--preset", help="Named settings of the method, such as paper. [default: none]", metavar="NAME")
@click.option("--seed", type=int, help="Of split, noise and training together. [default: 0]", metavar="N")
@options.CONFIG
@options.setting("Any field, as method.tau=0.7")
@options.resume("run")
@options.overwrite("run")
@options.SILENT
@options.of(DataConfig, ModelConfig, RunConfig)
def fit(settings: tuple[str, ...], **said: Any) -> None:
    """Train on noisy labels; write the model, the list of probably wrong labels and the report.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.pipeline.fit import fit as run

    result = run(settings=list(settings), **{k: v for k, v in said.items() if v is not None})
    if init_distributed().main:
        print_summary(result.summary)


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="Checkpoint folder or hub id. [no default]", metavar="MODEL")
@options.CONFIG
@options.SILENT
@options.of(DataConfig, ModelConfig)
@click.option("--workers", type=int, default=1, show_default=True, help="Processes of Ray at once.", metavar="N")
@click.option("--cache", help="Folder that all machines see. [default: $CLEANTUNE_CACHE, else ~/.cache/cleantune]")
def extract(data: str, model: str, config: Path | None, quiet: bool, workers: int, **said: Any) -> None:
    """Features of all samples into the cache, by many processes or machines; `fit` then finds them there.

    DATA is an image folder or a table of images or texts that every machine sees under the same path.
    """
    from cleantune.pipeline.fit import tabulate
    from cleantune.pipeline.ray_extract import extract_all

    given = {key: value for key, value in said.items() if value is not None}
    table = tabulate(data, model, None, None, None, None, config, None, given)
    counts = extract_all(table, workers, quiet)
    for split, count in counts.items():
        click.echo(f"{split}  {count:,} samples")


@click.command()
@click.argument("data", required=False)
@click.option("--model", help=f"{describe_fields(ModelConfig)[0].help} [default: none]", metavar="MODEL")
@click.option("--method", help=f"One of {', '.join(METHODS)}. [default: turn]", metavar="NAME")
@click.option("--scope", type=click.Choice(["head", "all"]), help="What learns. [default: the method's own]")
@click.option("--preset", help="Named settings of the method, such as paper. [default: none]", metavar="NAME")
@options.CONFIG
@options.setting("Any field, as method.tau=0.7")
@options.of(DataConfig, ModelConfig, RunConfig)
def plan(settings: tuple[str, ...], **said: Any) -> None:
    """What `fit` would take with the same options, by a probe of about ten seconds; nothing is trained or kept."""
    from cleantune.pipeline.plan import plan as foreseen

    told = foreseen(settings=list(settings), **{k: v for k, v in said.items() if v is not None})
    click.echo("\n".join(told.lines()))


def print_summary(summary: dict[str, Any]) -> None:
    """The few numbers that matter, aligned, on standard output."""
    accuracy, noise = summary["accuracy"], summary["noise"]
    rows = [
        ("test accuracy", percent(accuracy["test"])),
        ("  CE linear probe", percent(summary["baseline"]["accuracy"]["test"])),
        ("validation accuracy", f"{percent(accuracy['validation'])} (by given labels)"),
        ("labels that look wrong", f"{summary['issues']['count']:,}"),
        ("estimated noise rate", percent(noise["estimated_rate"])),
    ]
    if "true_rate" in noise:
        rows.append(("  true noise rate", percent(noise["true_rate"])))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def percent(share: float | None) -> str:
    """A share for people."""
    return "not measured" if share is None else f"{share:.1%}"


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
@click.option("--id", help="Column of ids. [default: id, else the path, else the row's number]", metavar="COL")
def predict(run: Path, data: str, out: Path | None, **columns: str | None) -> None:
    """Predict with the model of a run: id, predicted label, probability."""
    import pandas as pd

    from cleantune.pipeline.predict import load
    from cleantune.storage.files import write_table

    model = load(run)
    rows = model.rows(data, **{k: v for k, v in columns.items() if v is not None})
    p = model.probabilities(rows)
    labels = model.class_values[p.argmax(1)].tolist()
    frame = pd.DataFrame({"id": rows.ids, "predicted_label": labels, "probability": p.max(1).astype("float64")})
    if out is None:
        click.echo(frame.to_csv(index=False), nl=False)
    elif out.suffix == ".parquet":
        write_table(out, lambda path: frame.to_parquet(path, index=False))
    elif out.suffix == ".csv":
        write_table(out, lambda path: frame.to_csv(path, index=False))
    else:
        raise UserError(f"--out {out}: the table is written as .parquet or .csv")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Build the report of a run anew."""
    from cleantune.report import build

    click.echo(f"report: {build(run)}")


@click.command()
@click.argument("data")
@click.option(
    "--noise",
    required=True,
    help="Such as symmetric:0.6, asymmetric:0.4, pair:0.3, instance:0.4. [no default]",
    metavar="NOISE",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Table to write: .parquet .csv .tsv .jsonl .npz. [no default]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.", metavar="N")
@options.of(DataConfig)
def corrupt(data: str, noise: str, out: Path, seed: int, **columns: Any) -> None:
    """Write data with noise in its labels and the true ones in a column of their own.

    Noise captions:0.2 is for pairs: the captions of a fifth of the rows, column --text, change places.
    """
    from cleantune.config.schema import from_dict
    from cleantune.data import KIND, write_corrupted, write_swapped

    if noise.startswith(KIND):
        if columns.get("text") is None:
            raise UserError(f"--noise {noise}: name the column of captions with --text")
        share = write_swapped(data, noise, columns["text"], out, image=columns.get("image"), seed=seed)
        click.echo(f"{out}: {percent(share)} of the captions are wrong")
        return
    spec = from_dict(DataConfig, {"data": data} | {k: v for k, v in columns.items() if v is not None}, "data")
    measured = write_corrupted(spec, noise, seed, out)
    click.echo(f"{out}: {percent(measured.get('rate', 0.0))} of the labels are wrong")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON. [default: off]")
def methods(as_json: bool) -> None:
    """Methods, their settings with ranges and defaults, and their presets."""
    listed = {name: _settings(cls) for name, cls in METHODS.items()}
    if as_json:
        click.echo(json.dumps(listed, indent=2, default=str))
        return
    for name, cls in METHODS.items():
        click.secho(f"{name}: {(cls.__doc__ or '').splitlines()[0]}", bold=True)
        click.echo(f"  presets: {', '.join(cls.presets) or 'none'}")
        for key, default, allowed, words in listed[name]:
            click.echo(f"  {key:<30} {default!s:<15} {allowed:<22} {words}")
        click.echo("")


def _settings(cls: type, path: str = "method") -> list[tuple[str, Any, str, str]]:
    out = []
    for field in describe_fields(cls):
        if isinstance(field.default, Stage | MLPHeadConfig):
            record = field.default
            for inner in describe_fields(type(record)):
                value = getattr(record, inner.name)
                out.append((f"{path}.{field.name}.{inner.name}", value, _range(inner), inner.help))
        else:
            out.append((f"{path}.{field.name}", field.default, _range(field), field.help))
    return out


def _range(field: FieldInfo) -> str:
    if isinstance(field.allowed, Range):
        return f"{field.allowed.low:g} to {field.allowed.high:g}"
    if isinstance(field.allowed, Choice):
        return " | ".join(str(v) for v in field.allowed.values)
    return "true | false" if field.kind is bool else ""


@click.command()
def backbones() -> None:
    """Architectures, and which feature of each is used."""
    from cleantune.backbones import table

    rows = table()
    heads = list(rows[0])
    widths = {h: max(len(h), *(len(str(row[h])) for row in rows)) for h in heads}
    for row in [{h: h for h in heads}, *rows]:
        click.echo("  ".join(f"{row[h]!s:<{widths[h]}}" for h in heads).rstrip())


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run. [no default]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of split, noise and training.", metavar="N")
@options.overwrite("run")
def demo(out: Path, seed: int, overwrite: bool) -> None:
    """The main job on handwritten digits of which 60 % were labeled at random."""
    from cleantune.demo import PLAIN_EPOCHS, digits

    result, plain = digits(out, seed=seed, overwrite=overwrite)
    print_summary(result.summary)
    click.echo(f"plain cross-entropy fine-tuning, {PLAIN_EPOCHS} epochs, on the same labels: {percent(plain)}")
    click.echo(f"report: {out / 'report.html'}")


@click.command("demo-text")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run. [no default]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of split, noise and training.", metavar="N")
@options.overwrite("run")
def demo_text(out: Path, seed: int, overwrite: bool) -> None:
    """The main job on customer messages of which 40 % were labeled at random."""
    from cleantune.demo import messages

    print_summary(messages(out, seed=seed, overwrite=overwrite).summary)
    click.echo(f"report: {out / 'report.html'}")


VERBS: dict[str, click.Command] = {
    "fit": fit,
    "plan": plan,
    "extract": extract,
    "audit": audit_verbs.audit,
    "review": audit_verbs.review,
    "apply": audit_verbs.apply,
    "predict": predict,
    "report": report,
    "compare": compare,
    "search": search,
    "evaluate": study_commands.evaluate,
    "spectrum": study_commands.spectrum,
    "pretrain": study_commands.pretrain,
    "transfer": study_commands.transfer,
    "corrupt": corrupt,
    "reproduce": reproduce,
    "demo": demo,
    "demo-text": demo_text,
    "methods": methods,
    "backbones": backbones,
}
