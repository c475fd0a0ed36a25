"""How far a ranking of trials can be trusted, and which of them is taken: pure functions on numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

RISK = 0.05
"""Chance at the most that a trial is crowned over the default although all trials are alike."""

REMEDIES = (
    "for a sharper judgment take a larger validation split (--validation-fraction), average the last epochs"
    " (--objective noisy-val-averaged), or judge by the loss (--objective noisy-val-gce)."
)
"""Spec 5.4."""


@dataclass(frozen=True)
class Ranking:
    """What is known of the order of trials."""

    best: int
    """The trial with the highest objective."""
    chosen: int
    """The trial that is taken."""
    tied: tuple[int, ...]
    """Trials that the noise of the validation split does not tell from the best, with the best itself."""
    spread: float
    """Standard deviation of the objective over trials."""
    error: float
    """Typical standard error of one trial's objective."""

    @property
    def reliability(self) -> float:
        """Share 0..1 of the variance between trials that is not the noise of the validation split."""
        return max(0.0, 1.0 - (self.error / self.spread) ** 2) if self.spread > 0 else 0.0

    @property
    def crowned(self) -> bool:
        """Whether the best is ahead of the default by more than the noise."""
        return self.chosen != 0


def rank(values: Float[np.ndarray, "T n"], objective: Float[np.ndarray, " T"]) -> Ranking:
    """Choose among trials; the first one is the default.

    All trials are judged on the same n samples, so two of them are compared by their differences sample by sample,
    which are far less noisy than each objective. The best of many is high by luck: a difference counts when it is above
    the quantile 1 - RISK / T of its own standard error (Bonferroni). The default is taken where it is tied with the
    best; else the best is.

    Args:
        values: What each trial is worth on each validation sample, such as 1 where it agrees with the given label.
        objective: Of each trial: the mean of its values, or a steadier number on the same scale.

    Returns:
        The ranking.
    """
    trials, count = values.shape
    best = int(objective.argmax())
    bar = NormalDist().inv_cdf(1 - RISK / max(2, trials))
    tied = []
    for k in range(trials):
        difference = values[best] - values[k]
        error = float(difference.std(ddof=1)) / count**0.5 if count > 1 else float("inf")
        if k == best or float(objective[best] - objective[k]) <= bar * error:
            tied.append(k)
    errors = values.std(axis=1, ddof=1) / count**0.5 if count > 1 else np.full(trials, np.inf)
    spread = float(objective.std(ddof=1)) if trials > 1 else 0.0
    return Ranking(best, 0 if 0 in tied else best, tuple(tied), spread, float(np.sqrt((errors**2).mean())))


def sentences(ranking: Ranking, objective: Mapping[int, float], *, points: bool) -> list[str]:
    """What came out, in words.

    Args:
        ranking: Over trial numbers.
        objective: Of each finished trial.
        points: Whether the objective is a share, which people read in percent.
    """

    def spell(value: float, unit: str = "") -> str:
        return f"{100 * value:.2f}{unit}" if points else f"{value:.4f}"

    best = spell(objective[ranking.best], " %")
    if ranking.best == 0:
        said = [f"the default is best with {best}."]
    elif 0 not in objective:
        said = [f"trial {ranking.chosen} is best with {best}; the default was stopped early or failed."]
    elif ranking.crowned:
        said = [f"trial {ranking.chosen} is best with {best}, ahead of the default by more than noise."]
    else:
        said = [
            f"no winner: trial {ranking.best} has the highest value, {best}, but the noise of the validation split does"
            " not tell it from the default, which is taken."
        ]
    said.append(
        f"{len(ranking.tied)} of {len(objective)} trials are tied with the highest; a trial's standard error is"
        f" {spell(ranking.error)}{' points' if points else ''}, the trials' standard deviation {spell(ranking.spread)}"
        f" (reliability of the ranking {ranking.reliability:.2f})."
    )
    if ranking.reliability < 0.5 or (ranking.best != 0 and not ranking.crowned):
        said.append(REMEDIES)
    return said


def importances(x: Float[np.ndarray, "T d"], objective: Float[np.ndarray, " T"]) -> Float[np.ndarray, " d"] | None:
    """How much of what a forest knows of the objective it owes to each dimension: shares that sum to 1.

    By permutation of one column at a time (Breiman 2001), in a forest of extremely randomized trees that is judged on
    the samples each tree has not seen; None where the forest knows nothing, or there are fewer than eight trials.
    """
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.inspection import permutation_importance

    if len(x) < 8 or float(objective.std()) == 0:
        return None
    forest = ExtraTreesRegressor(300, bootstrap=True, oob_score=True, min_samples_leaf=2, random_state=0).fit(
        x, objective
    )
    if forest.oob_score_ <= 0:
        return None
    found = permutation_importance(forest, x, objective, n_repeats=20, random_state=0).importances_mean.clip(min=0)
    return found / found.sum() if found.sum() > 0 else None
