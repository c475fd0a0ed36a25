"""An experiment matrix under equal conditions: methods x scopes x noises x models x seeds on one data set.

>>> import cleantune
>>> done = cleantune.compare(  # doctest: +SKIP
...     "photos/", model=["vit", "convnext"], methods=["ce", "gce", "robust"], scopes=["head", "all"],
...     noises=["none", "symmetric:0.6"], seeds=3, out="runs/compare", test_fraction=0.2,
... )
>>> done.table      # a pandas frame, one row a cell and seed: what compare.parquet holds; doctest: +SKIP
>>> done.epochs     # a pandas frame, one row an epoch of each cell; doctest: +SKIP
>>> done.path       # the folder, with compare.parquet, compare.md, compare.html, config.toml; doctest: +SKIP

The same from a TOML file or a table of the same shape, `cleantune.compare(config=..., out=...)`:

    preset = "paper"                 # of every method that has one of this name; left out: the methods' defaults

    [matrix]
    methods = ["ce", "gce", "robust"]  # left out: all, or none where there are entries
    scopes = ["head", "all"]         # left out: both; head alone where the data are features
    noises = ["none", "symmetric:0.6"]
    models = ["google/vit-base-patch16-224"]
    seeds = 3                        # 0, 1, 2; or a list
    tune = false                     # three learning rates each, judged by the noisy validation split of the first seed

    [[matrix.entries]]               # rows of the table beside methods x scopes, each with settings of its own
    name = "TURN, tau 0.3"           # how the table calls it; it must differ from every other
    method = "turn"
    scope = "all"                    # left out: the method's own
    preset = "paper"                 # left out: the matrix's
    settings = { tau = 0.3, probe = { epochs = 50 } }

    [method]                         # fields for every method that has them, as `--set method.probe.epochs=5`
    [settings.turn]                  # fields for one method, as `--set turn.tau=0.7`
    [data]                           # as in a run's config.toml; so are [model] (but its name), [run] and [views]

A method that probes and fine-tunes by itself (TURN) is one entry, whatever the scopes. The seed of a cell is that of
its noise and of its training; the split is drawn once, by `data.split_seed`, so that all cells share features, and
test and validation samples. What is said beside a config wins over it.

`compare` raises UserError for what the user can put right before anything has run; after that a cell that fails is a
row with `status` = `failed` and a `reason`, and the rest runs.
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
    """Its folder."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell and seed; docs/compare.md lists the columns."""
        import pandas as pd

        return pd.read_parquet(self.path / "compare.parquet")

    @property
    def epochs(self) -> pd.DataFrame:
        """One row an epoch of every cell: what the run measured after it, under the cell's name."""
        import pandas as pd

        return pd.read_parquet(self.path / "epochs.parquet")

    @property
    def markdown(self) -> str:
        """The table as Markdown, best / last, mean ± standard deviation over seeds."""
        return (self.path / "compare.md").read_text(encoding="utf-8")

    @property
    def page(self) -> Path:
        """The page to look at."""
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
    """Run a matrix; write its table as Parquet, Markdown and a page.

    Args:
        data: As in `fit`.
        model: One of what `fit` takes, or a list of them; none for embeddings.
        out: Folder of the matrix. One that is not empty is refused unless resume or overwrite is set.
        methods: Names of methods, in the order of the table; left out: all.
        scopes: `head`, `all`; left out: both, or `head` where the data are features.
        noises: Such as `none`, `symmetric:0.6`; left out: the labels as they are.
        seeds: How many (0, 1, …) or which, each of noise and training; left out: 3.
        entries: Further rows with settings of their own: name, method, scope, preset, settings.
        preset: Named settings of every method that has them, such as `paper`.
        tune: Give every entry three learning rates, chosen on the noisy validation split of the first seed.
        config: A TOML file (such as another matrix's config.toml) or a table; what is given beside it wins.
        settings: Fields by path: `method.probe.epochs` for all methods that have it, `turn.tau` for one.
        resume: Go on with an interrupted matrix, half-way cells included; cells that failed are tried again.
        overwrite: Remove an earlier matrix in `out` first.
        silent: Say nothing.
        **options: Fields of the data, the model and the run by name: `label`, `test`, `image_size`, `model_selection`, …

    Returns:
        The finished matrix.

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    from cleantune.studies.compare.reading import tabulate
    from cleantune.studies.compare.running import run

    said = {"methods": methods, "scopes": scopes, "noises": noises, "seeds": seeds, "entries": entries, "tune": tune}
    table = tabulate(data, model, said, preset, config, settings, options)
    return Comparison(run(table, Path(out), resume=resume, overwrite=overwrite, quiet=quiet))
