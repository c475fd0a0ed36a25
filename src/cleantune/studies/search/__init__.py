"""Search for settings by Ray Tune, judged on the noisy validation split, with an honest word on what that can tell.

>>> import cleantune
>>> done = cleantune.search("photos/", model="vit", method="gce", scope="head", out="runs/search")  # doctest: +SKIP
>>> done.trials     # a pandas frame, one row a trial: what trials.parquet holds; doctest: +SKIP
>>> cleantune.fit("photos/", config=done.best, out="runs/best")  # doctest: +SKIP
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
    """Its folder."""

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial; docs/search.md lists the columns."""
        import pandas as pd

        return pd.read_parquet(self.path / "trials.parquet")

    @property
    def best(self) -> Path:
        """The settings that were taken, as `fit` reads them."""
        return self.path / "best.toml"

    @property
    def page(self) -> Path:
        """The page to look at."""
        return self.path / "search.html"

    @property
    def words(self) -> list[str]:
        """What came out, in sentences."""
        from cleantune.storage.files import read_json

        said: list[str] = read_json(self.path / "ranking.json")["words"]
        return said


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
    """Try settings of a method; write every trial, the best config and a page.

    Args:
        data: As in `fit`, as are model, method, scope, preset, seed, config, settings and options.
        model: See data.
        out: Folder of the search. One that is not empty is refused unless resume or overwrite is set.
        method: See data.
        scope: See data.
        preset: See data.
        seed: See data.
        trials: How many, the default settings among them; left out: a whole grid in scope `head`, else 32, in `all` 16.
        space: `paper` (Table 7 of TURN's paper), a TOML file or a table; left out: the ranges beside the fields.
        objective: One of `cleantune.studies.search.trials.OBJECTIVES`.
        search_seed: Of the settings that are drawn.
        config: See data.
        settings: See data.
        resume: Go on with an interrupted search; trials that failed are tried again.
        overwrite: Remove an earlier search in `out` first.
        silent: Say nothing.
        **options: See data.

    Returns:
        The finished search.

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    from cleantune.pipeline.arguments import FitArguments
    from cleantune.studies.search.running import run

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
