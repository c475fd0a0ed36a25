"""The list of labels: its order, its columns, and what it says on a problem whose answer is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cleantune.data import Data, Rows
from cleantune.label_quality.scores import cross_entropy_per_sample
from cleantune.methods.protocol import ProbeStatistics
from cleantune.pipeline.label_table import LabelStatistics, Verdict, judge_labels, label_table, mixtures_of, witness

COLUMNS = ["id", "split", "given_label", "suggested_label", "label_score", "is_label_issue", "p_clean"]


class Nothing:
    """Samples that are never read."""

    kind = "features"
    fingerprint = ""


def data(y: dict[str, list[int]], truth: dict[str, list[int]] | None = None, values: tuple = ("cat", "dog")) -> Data:
    rows = {
        split: Rows(np.array([f"{split}{i}" for i in range(len(given))], dtype=object), np.array(given), Nothing())  # type: ignore[arg-type]
        for split, given in y.items()
    }
    known = {split: np.array(t) for split, t in (truth or {}).items()}
    return Data("features", tuple(map(str, values)), values, rows, known, (), "")


def verdict(score: list[float], suggested: list[int], issue: list[bool]) -> Verdict:
    s = torch.tensor(score)
    return Verdict(s, s.clone(), torch.tensor(suggested), torch.tensor(issue), 0.0, torch.zeros(2))


def known_problem(count: int = 600, seed: int = 0) -> tuple[LabelStatistics, Tensor]:
    """A probe that is sure of the true class, on labels of which three in ten are wrong."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.arange(count) % 3
    wrong = torch.rand(count, generator=rng) < 0.3
    y = torch.where(wrong, (true + 1) % 3, true)
    p = (4 * torch.nn.functional.one_hot(true, 3) + 0.5 * torch.randn(count, 3, generator=rng)).softmax(1)
    return LabelStatistics(y, cross_entropy_per_sample(p, y), cross_entropy_per_sample(p, y), p), wrong


def test_the_table_is_sorted_worst_first_with_the_columns_of_the_contract() -> None:
    y = {"train": [0, 1, 0], "validation": [1], "test": [0]}
    frame = label_table(data(y), verdict([0.9, 0.1, 0.5, 0.3], [0, 0, 1, 1], [False, True, True, False]))
    assert list(frame.columns) == COLUMNS
    assert frame["id"].tolist() == ["train1", "validation0", "train2", "train0"]
    assert frame["split"].tolist() == ["train", "validation", "train", "train"]
    assert frame["label_score"].is_monotonic_increasing
    assert frame["given_label"].tolist() == ["dog", "dog", "cat", "cat"]
    assert frame["suggested_label"].tolist() == ["cat", "dog", "dog", "cat"]
    assert frame["is_label_issue"].tolist() == [True, False, True, False]
    assert frame.index.tolist() == [0, 1, 2, 3]


def test_equal_scores_keep_the_order_of_the_rows() -> None:
    frame = label_table(data({"train": [0] * 20}), verdict([0.5] * 20, [0] * 20, [False] * 20))
    assert frame["id"].tolist() == [f"train{i}" for i in range(20)]


def test_true_labels_are_shown_where_they_are_known() -> None:
    y, truth = {"train": [0, 1], "validation": [1]}, {"train": [1, -1]}
    frame = label_table(data(y, truth), verdict([0.1, 0.2, 0.3], [0, 0, 0], [False] * 3))
    assert list(frame.columns) == [*COLUMNS, "true_label"]
    assert frame["true_label"][0] == "dog"
    assert frame["true_label"].isna().tolist() == [False, True, True]


def test_labels_are_written_as_the_user_wrote_them() -> None:
    frame = label_table(data({"train": [0, 1]}, values=(3, 7)), verdict([0.1, 0.2], [1, 0], [True, True]))
    assert frame["given_label"].tolist() == [3, 7]
    assert frame["given_label"].dtype == np.int64


def test_wrong_labels_of_a_sure_probe_are_found_and_their_share_estimated() -> None:
    known, wrong = known_problem()
    said = judge_labels([known], 3)
    assert float((said.issue == wrong).float().mean()) > 0.99
    assert abs(said.estimated_rate - float(wrong.float().mean())) < 0.01
    assert said.score[wrong].max() < said.score[~wrong].min()
    assert (said.p_clean[wrong] < 0.5).float().mean() > 0.99
    assert (said.p_clean[~wrong] > 0.5).float().mean() > 0.95
    torch.testing.assert_close(said.suggested[wrong], (known.y[wrong] - 1) % 3)


def test_the_rate_of_a_class_is_the_share_of_its_labels_that_look_wrong() -> None:
    known, _ = known_problem()
    said = judge_labels([known], 3)
    for c in range(3):
        assert float(said.rate_by_class[c]) == float(said.issue[known.y == c].float().mean())


def test_validation_is_judged_by_the_mixtures_of_train() -> None:
    train, _ = known_problem()
    validation, wrong = known_problem(90, seed=1)
    said, alone = judge_labels([train, validation], 3), judge_labels([train], 3)
    assert len(said.score) == 690
    assert torch.equal(said.p_clean[:600], alone.p_clean)
    assert float((said.issue[600:] == wrong).float().mean()) > 0.97


def test_the_score_is_the_probability_of_the_given_label() -> None:
    known, _ = known_problem()
    torch.testing.assert_close(judge_labels([known], 3).score, known.p[torch.arange(600), known.y])


def test_a_class_without_a_sample_has_the_rate_zero() -> None:
    known, _ = known_problem()
    wide = LabelStatistics(known.y, known.loss, known.late_loss, torch.cat([known.p, torch.zeros(600, 1)], 1))
    assert float(judge_labels([wide], 4).rate_by_class[3]) == 0


def test_witness_takes_probe_statistics_or_one_evaluation_pass() -> None:
    y, p = torch.tensor([0, 1]), torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    torch.testing.assert_close(witness(None, p, y).loss, cross_entropy_per_sample(p, y))
    statistics = ProbeStatistics(torch.full((2,), 1.0), torch.full((2,), 2.0), p.flip(0))
    found = witness(statistics, p, y)
    assert (found.loss[0], found.late_loss[0]) == (1, 2)
    assert torch.equal(found.p, p.flip(0))


def test_drawn_mixtures_have_a_low_and_a_high_part_and_count_what_is_kept() -> None:
    known, _ = known_problem()
    drawn = mixtures_of(known.loss, known.y, 3, ("a", "b", "c"))
    assert list(drawn) == ["a", "b", "c"]
    for c, one in enumerate(drawn.values()):
        assert one["low"]["mean"] < one["high"]["mean"]
        assert abs(one["low"]["weight"] + one["high"]["weight"] - 1) < 1e-5
        assert one["size"] == int((known.y == c).sum())
        assert 0.6 < one["kept"] / one["size"] < 0.8
