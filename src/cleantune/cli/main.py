"""The command line: verbs by group, one sentence for an error, exit code 2 for what the user can put right."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from cleantune.errors import UserError, did_you_mean

VERBS: dict[str, dict[str, str]] = {
    "The main job": {
        "fit": "Train on noisy labels; write the model, the list of probably wrong labels and the report.",
        "plan": "What fit would take: forward_passes, minutes, disk, memory; nothing is trained.",
        "extract": "Features of all samples into the cache, by many processes or machines.",
        "predict": "Predict with the model of a run.",
        "report": "Build the report of a run anew.",
    },
    "Wrong labels": {
        "audit": "Find the wrong labels and say how many there are, without fine-tuning.",
        "review": "Decide on suspects in a page on this machine: keep, relabel, drop, unsure.",
        "apply": "Write the data with the decisions of a review in it.",
    },
    "Studies": {
        "compare": "Methods x scopes x noises x models x seeds under equal conditions, as one table.",
        "search": "Search for a method's settings on the noisy validation split.",
        "evaluate": "Measure finished runs on their test split and on other domains, as one table.",
        "spectrum": "Singular values of features over models and data sets, as a table and a page.",
        "pretrain": "Train a backbone from random weights on labels that may be wrong.",
        "transfer": "Backbones x tasks x tunings on cached features, in and out of domain, as tables.",
        "corrupt": "Write data with noise in its labels, to rehearse on.",
        "reproduce": "A table or figure of TURN's paper, ours beside its numbers.",
        "demo": "The main job on handwritten digits with 60 % random labels.",
        "demo-text": "The main job on customer messages with noisy intents.",
    },
    "Information": {
        "methods": "Methods, their settings, ranges and presets.",
        "backbones": "Architectures, and which feature of each is used.",
    },
}
"""Verbs by group with their summaries; a verb's own module is imported when it is called."""


class Grouped(click.Group):
    """A group that lists its verbs by what they are for, and imports none of them to do so."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs in the order of the table."""
        return [name for verbs in VERBS.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, built on demand."""
        if cmd_name not in self.list_commands(ctx):
            return None
        verb: click.Command = importlib.import_module("cleantune.cli.commands").VERBS[cmd_name]
        return verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest verb for an unknown one."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UserError(f'unknown verb "{args[0]}"{did_you_mean(args[0], self.list_commands(ctx))}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs under the headings of their groups."""
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))


@click.group(cls=Grouped, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="cleantune")
def cli() -> None:
    """Fine-tune a pre-trained model on labels you cannot fully trust, and get the wrong labels listed.

    \b
    cleantune fit photos/ --model google/vit-base-patch16-224 --out runs/photos
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns (or exits with) 0, 2 for the user's errors, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cli.main(args=args, prog_name="cleantune", standalone_mode=False)
    except UserError as error:
        click.echo(f"cleantune: {error}", err=True)
        return _leave(2)
    except click.exceptions.Exit as done:
        return _leave(done.exit_code)
    except click.ClickException as error:
        error.show()
        return _leave(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "cleantune: interrupted; what is finished is on disk, the same command with --resume goes on", err=True
        )
        return _leave(130)
    return 0


def _leave(code: int) -> int:
    """End the process with a code."""
    sys.exit(code)


def _interrupt(number: int, frame: Any) -> None:
    """SIGTERM ends a run as Ctrl-C does."""
    raise KeyboardInterrupt
