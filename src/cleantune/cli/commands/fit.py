"""The verb `fit`."""

from __future__ import annotations

from typing import Any

import click

from cleantune.cli import options
from cleantune.cli.output import print_summary
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig


@click.command()
@click.argument("data", required=False)
@options.MODEL
@options.out("run")
@options.METHOD
@options.scope("head", "all", "lora")
@options.PRESET
@options.SEED
@options.CONFIG
@options.setting("Any setting, such as method.tau=0.7")
@options.resume("run")
@options.overwrite("run")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig, RunConfig)
def fit(settings: tuple[str, ...], **values: Any) -> None:
    """Train on noisy labels; write the model, the label table and the report.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.distributed.process_group import init_distributed
    from cleantune.pipeline.fit import fit as run

    result = run(settings=list(settings), **options.drop_unset(values))
    if init_distributed().is_main:
        print_summary(result.summary)
        click.echo(f"report: {result.report}")
        click.echo(f"next: cleantune review {result.path}")
