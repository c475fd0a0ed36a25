"""Entry point of the command line: verbs in groups, errors as one sentence, exit codes."""

from __future__ import annotations

import importlib
import sys

import click

from cleantune.cli.process import configure_process, is_verbose
from cleantune.errors import UserError, did_you_mean

VERBS: dict[str, dict[str, str]] = {
    "Train": {
        "fit": "Train on noisy labels; write the model, the label table and the report.",
        "plan": "Estimate the cost of fit: forward passes, time, disk, memory.",
        "extract": "Extract features into the cache, on one or many machines.",
        "predict": "Predict with the model of a run.",
        "report": "Build the report of a run again.",
    },
    "Find wrong labels": {
        "audit": "Find wrong labels and estimate their share, without fine-tuning.",
        "review": "Review label issues in the browser: keep, relabel, drop, unsure.",
        "apply": "Apply the decisions of a review to the data.",
    },
    "Studies": {
        "compare": "Compare methods, scopes, noises, models and seeds under equal conditions.",
        "search": "Search the settings of a method on the noisy validation split.",
        "evaluate": "Evaluate finished runs on their test split and on other domains.",
        "spectrum": "Compute the singular values of features, as a table and a page.",
        "pretrain": "Pre-train a backbone from random weights on noisy labels.",
        "transfer": "Compare frozen backbones on tasks in and out of domain.",
        "corrupt": "Write data with label noise, for experiments.",
        "reproduce": "Reproduce a table or figure of the TURN paper.",
        "demo": "Run fit on handwritten digits with 60 % random labels.",
        "demo-text": "Run fit on customer messages with 40 % random labels.",
    },
    "Information": {
        "methods": "List the methods; with a name, its settings, ranges and presets.",
        "backbones": "List the architectures and the feature of each.",
    },
}
"""Summaries of the verbs by group. The module of a verb is imported on use, so that `--help` is fast."""


class VerbGroup(click.Group):
    """Group of verbs that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs in the order of the table."""
        return [name for verbs in VERBS.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb, None for an unknown one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"cleantune.cli.commands.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a verb as click does, with a suggestion for an unknown one."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UserError(f'unknown verb "{args[0]}"{did_you_mean(args[0], self.list_commands(ctx))}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs under the headings of their groups."""
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="cleantune")
def cli() -> None:
    """Fine-tune pre-trained models on noisy labels, and find the wrong labels.

    \b
    cleantune fit photos/ --model google/vit-base-patch16-224 --out runs/photos
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments after the program's name; those of the process by default.

    Returns:
        0. Otherwise the process exits: 2 after a user error, 130 after Ctrl-C or SIGTERM.
    """
    configure_process()
    try:
        cli.main(args=args, prog_name="cleantune", standalone_mode=False)
    except UserError as error:
        if is_verbose():
            sys.excepthook(UserError, error, error.__traceback__)
        click.echo(f"cleantune: {error}", err=True)
        sys.exit(2)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("cleantune: interrupted; progress is saved, rerun with --resume to continue", err=True)
        sys.exit(130)
    return 0
