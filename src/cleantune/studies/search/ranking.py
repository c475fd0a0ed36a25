"""Rank trials, estimate how reliable the ranking is, and choose one: pure functions on numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

RISK = 0.05
"""Largest probability that a trial replaces the default although all trials are equally good."""

REMEDIES = (
    "for a more reliable ranking use a larger validation split (--validation-fraction), average the last epochs"
    " (--objective noisy-val-averaged), or compare losses (--objective noisy-val-gce)."
)


@dataclass(frozen=True)
class Ranking:
    """The order of trials and its reliability."""

    best: int
    """The trial with the highest objective."""
    chosen: int
    """The trial to use."""
    tied: tuple[int, ...]
    """Trials that differ from the best by no more than the noise of the validation split, with the best itself."""
    spread: float
    """Standard deviation of the objective over trials."""
    error: float
    """Typical standard error of one trial's objective."""

    @property
    def reliability(self) -> float:
        """Fraction of the variance between trials that is not noise of the validation split, 0 to 1."""
        return max(0.0, 1.0 - (self.error / self.spread) ** 2) if self.spread > 0 else 0.0

    @property
    def beats_default(self) -> bool:
        """True if the best is ahead of the default by more than the noise."""
        return self.chosen != 0


def rank(values: Float[np.ndarray, "T n"], objective: Float[np.ndarray, " T"]) -> Ranking:
    """Choose among trials; the first one is the default.

    All trials are evaluated on the same n samples, so two of them are compared by their paired differences, which are
    far less noisy than each objective. The best of many is partly high by chance: a difference counts if it exceeds
    the quantile 1 - RISK / T of its own standard error (Bonferroni correction). The default is chosen if it is tied
    with the best, otherwise the best is.

    Args:
        values: Score of each trial on each validation sample, such as 1 if it agrees with the given label.
        objective: Objective of each trial: the mean of its values, or a less noisy number on the same scale.

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


def sentences(ranking: Ranking, objective: Mapping[int, float], *, is_fraction: bool) -> list[str]:
    """Return the outcome of a search in sentences.

    Args:
        ranking: Ranking by trial numbers.
        objective: Objective of each finished trial.
        is_fraction: Whether the objective is a fraction, to be shown in percent.
    """

    def text(value: float, unit: str = "") -> str:
        return f"{100 * value:.2f}{unit}" if is_fraction else f"{value:.4f}"

    best = text(objective[ranking.best], " %")
    if ranking.best == 0:
        lines = [f"the default is best with {best}."]
    elif 0 not in objective:
        lines = [f"trial {ranking.chosen} is best with {best}; the default was stopped early or failed."]
    elif ranking.beats_default:
        lines = [f"trial {ranking.chosen} is best with {best}, ahead of the default by more than noise."]
    else:
        lines = [
            f"no winner: trial {ranking.best} has the highest value, {best}, but its lead over the default is within"
            " the noise of the validation split, so the default is chosen."
        ]
    lines.append(
        f"{len(ranking.tied)} of {len(objective)} trials are tied with the highest; a trial's standard error is"
        f" {text(ranking.error)}{' points' if is_fraction else ''}, the trials' standard deviation"
        f" {text(ranking.spread)} (reliability of the ranking {ranking.reliability:.2f})."
    )
    if ranking.reliability < 0.5 or (ranking.best != 0 and not ranking.beats_default):
        lines.append(REMEDIES)
    return lines


def importances(x: Float[np.ndarray, "T d"], objective: Float[np.ndarray, " T"]) -> Float[np.ndarray, " d"] | None:
    """Return the permutation importance of each dimension for the objective, as fractions that sum to 1.

    The model is a forest of extremely randomized trees (Breiman 2001 for the importance). Return None if its
    out-of-bag score is not positive or there are fewer than eight trials.
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
    importance = permutation_importance(forest, x, objective, n_repeats=20, random_state=0).importances_mean.clip(min=0)
    return importance / importance.sum() if importance.sum() > 0 else None
