"""Compare methods under equal conditions: methods × scopes × noises × models × seeds on one data set.

>>> import cleantune
>>> comparison = cleantune.compare(  # doctest: +SKIP
...     "photos/", model=["vit", "convnext"], methods=["ce", "gce", "robust"], scopes=["head", "all"],
...     noises=["none", "symmetric:0.6"], seeds=3, out="runs/compare", test_fraction=0.2,
... )
>>> comparison.table      # data frame, one row per cell and seed, as in compare.parquet; doctest: +SKIP
>>> comparison.epochs     # data frame, one row per epoch of each cell; doctest: +SKIP
>>> comparison.path       # folder with compare.parquet, compare.md, compare.html, config.toml; doctest: +SKIP

The same from a TOML file or a table of the same shape, `cleantune.compare(config=..., out=...)`:

    preset = "paper"                 # of every method that has a preset of this name; default: the methods' defaults

    [matrix]
    methods = ["ce", "gce", "robust"]  # default: all, or none if there are entries
    scopes = ["head", "all"]         # default: both; head alone if the data are features
    noises = ["none", "symmetric:0.6"]
    models = ["google/vit-base-patch16-224"]
    seeds = 3                        # 0, 1, 2; or a list
    tune = false                     # three learning rates each, selected on the noisy validation split

    [[matrix.entries]]               # further rows with their own settings
    name = "TURN, tau 0.3"           # name in the table; must be unique
    method = "turn"
    scope = "all"                    # default: the method's own
    preset = "paper"                 # default: the matrix's
    settings = { tau = 0.3, probe = { epochs = 50 } }

    [method]                         # fields of every method that has them, as `--set method.probe.epochs=5`
    [settings.turn]                  # fields of one method, as `--set turn.tau=0.7`
    [data]                           # as in a run's config.toml; likewise [model], [run] and [augmentation]

A method that probes and fine-tunes by itself (`robust`, `turn`) is one entry, whatever the scopes. The seed of a cell
is the seed of its noise and of its training; the split is drawn once, by `data.split_seed`, so that all cells share
features and the validation and test samples. Keyword arguments override the config.

`compare` raises UserError before anything has run. After that, a cell that fails is a row with `status` = `failed` and
a `reason`, and the others run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A finished matrix."""

    path: Path
    """Folder of the matrix."""

    @property
    def table(self) -> pd.DataFrame:
        """The table, one row per cell and seed; docs/compare.md lists the columns."""
        import pandas as pd

        return pd.read_parquet(self.path / "compare.parquet")

    @property
    def epochs(self) -> pd.DataFrame:
        """The metrics of every epoch of every cell, with the cell's names."""
        import pandas as pd

        return pd.read_parquet(self.path / "epochs.parquet")

    @property
    def markdown(self) -> str:
        """The table as Markdown: best / last, mean ± standard deviation over seeds."""
        return (self.path / "compare.md").read_text(encoding="utf-8")

    @property
    def page(self) -> Path:
        """Path of compare.html."""
        return self.path / "compare.html"


def compare(
    data: Any = None,
    model: Any = None,
    *,
    out: str | Path,
    methods: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    noises: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    entries: Sequence[Mapping[str, Any]] | None = None,
    preset: str | None = None,
    tune: bool | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Comparison:
    """Run a matrix of experiments; write its table as Parquet, Markdown and an HTML page.

    Args:
        data: As in `fit`.
        model: A model as in `fit`, or a list of models; none for embeddings.
        out: Folder of the matrix; it must be empty unless resume or overwrite is set.
        methods: Names of methods, in the order of the table; default: all.
        scopes: `head`, `all`; default: both, or `head` if the data are features.
        noises: Noises such as `none`, `symmetric:0.6`; default: the labels as they are.
        seeds: Number of seeds (0, 1, …) or the seeds, each of noise and training; default: 3.
        entries: Further rows with their own settings: name, method, scope, preset, settings.
        preset: Preset of every method that has it, such as `paper`.
        tune: Try three learning rates for every entry on the noisy validation split of the first seed.
        config: A TOML file (such as another matrix's config.toml) or a table; keyword arguments override it.
        settings: Fields by path: `method.probe.epochs` for all methods that have it, `turn.tau` for one.
        resume: Continue an interrupted matrix, unfinished cells included; failed cells are tried again.
        overwrite: Remove an earlier matrix from `out` first.
        quiet: Print nothing.
        **options: Fields of data, model and run by name: `label`, `test`, `image_size`, `model_selection`, …

    Returns:
        The finished matrix.

    Raises:
        UserError: The user can correct something; the message says what, where and how.
    """
    from cleantune.studies.compare.resolve import arguments_to_table
    from cleantune.studies.compare.run import run

    axes = {"methods": methods, "scopes": scopes, "noises": noises, "seeds": seeds, "entries": entries, "tune": tune}
    table = arguments_to_table(data, model, axes, preset, config, settings, options)
    return Comparison(run(table, Path(out), resume=resume, overwrite=overwrite, quiet=quiet))
