"""Search for settings by Ray Tune on the noisy validation split, with an estimate of how reliable the ranking is.

>>> import cleantune
>>> result = cleantune.search("photos/", model="vit", method="gce", scope="head", out="runs/search")  # doctest: +SKIP
>>> result.trials     # data frame, one row per trial, as in trials.parquet; doctest: +SKIP
>>> cleantune.fit("photos/", config=result.best, out="runs/best")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Search", "search"]


@dataclass(frozen=True)
class Search:
    """A finished search."""

    path: Path
    """Folder of the search."""

    @property
    def trials(self) -> pd.DataFrame:
        """The table, one row per trial; docs/search.md lists the columns."""
        import pandas as pd

        return pd.read_parquet(self.path / "trials.parquet")

    @property
    def best(self) -> Path:
        """Path of the chosen settings, as `fit` reads them."""
        return self.path / "best.toml"

    @property
    def page(self) -> Path:
        """Path of search.html."""
        return self.path / "search.html"

    @property
    def summary(self) -> list[str]:
        """The outcome in sentences."""
        from cleantune.storage.files import read_json

        lines: list[str] = read_json(self.path / "ranking.json")["summary"]
        return lines


def search(
    data: Any = None,
    model: Any = None,
    *,
    out: str | Path,
    method: str | None = None,
    scope: str | None = None,
    preset: str | None = None,
    seed: int | None = None,
    trials: int | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    objective: str = "noisy-val",
    search_seed: int = 0,
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Search:
    """Search for settings of a method; write all trials, the chosen config and an HTML page.

    Args:
        data: Data as in `fit`; model, method, scope, preset, seed, config, settings and options are also as in `fit`.
        model: See data.
        out: Folder of the search; it must be empty unless resume or overwrite is set.
        method: See data.
        scope: See data.
        preset: See data.
        seed: See data.
        trials: Number of trials with the default settings; default: the grid in scope `head`, else 32, in `all` 16.
        space: `paper` (Table 7 of arXiv:2310.17668), a TOML file or a table; default: the search ranges of the fields.
        objective: One of `cleantune.studies.search.trials.OBJECTIVES`.
        search_seed: Seed of the settings that are drawn.
        config: See data.
        settings: See data.
        resume: Continue an interrupted search; failed trials are tried again.
        overwrite: Remove an earlier search from `out` first.
        quiet: Print nothing.
        **options: See data.

    Returns:
        The finished search.

    Raises:
        UserError: The user can correct something; the message says what, where and how.
    """
    from cleantune.pipeline.arguments import FitArguments
    from cleantune.studies.search.run import run

    table = FitArguments(
        data=data, model=model, method=method, scope=scope, preset=preset, seed=seed, config=config, settings=settings,
        options=options,
    ).to_table()  # fmt: skip
    named = str(space) if isinstance(space, Path) else space
    return Search(
        run(
            table, Path(out), trials=trials, space=named, objective=objective, seed=search_seed, resume=resume,
            overwrite=overwrite, quiet=quiet,
        )
    )  # fmt: skip
