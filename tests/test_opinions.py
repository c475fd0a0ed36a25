"""What probes and a model of the noise think of labels in turn, against loops and by what it finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cleantune.functional.selection import balance_weights, within_class_quota
from cleantune.label_quality.loo_ridge import loo_ridge, stack, weighted_loo_ridge
from cleantune.label_quality.noise_model import fit_noise_model
from cleantune.label_quality.posterior import MAIN, STRAY, flip_concentration, main_targets, p_wrong

CLASSES = 12


def blobs(seed: int = 0, each: int = 60) -> tuple[Tensor, Tensor]:
    """Features of classes that lie in pairs, near one another, and their true labels."""
    g = torch.Generator().manual_seed(seed)
    true = torch.arange(each * CLASSES) % CLASSES
    center = 1.2 * torch.eye(30)[:CLASSES] + 1.2 * torch.eye(30)[CLASSES + torch.arange(CLASSES) // 2]
    return center[true] + 0.5 * torch.randn(len(true), 30, generator=g), true


def one_way(true: Tensor, rate: float = 0.4) -> Tensor:
    """Labels of which every odd class lost a share to the even one beside it, and every even one to class 0."""
    moved = torch.rand(len(true), generator=torch.Generator().manual_seed(1)) < rate
    return torch.where(moved, torch.where(true % 2 == 1, true - 1, torch.zeros_like(true)), true)


def anywhere(true: Tensor, rate: float) -> Tensor:
    g = torch.Generator().manual_seed(2)
    moved = torch.rand(len(true), generator=g) < rate
    return torch.where(moved, (true + torch.randint(1, CLASSES, (len(true),), generator=g)) % CLASSES, true)


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_where_wrong_labels_name_any_class_the_verdict_is_equal_to_the_bit_whether_a_pattern_is_looked_for(
    rate: float,
) -> None:
    x, true = blobs()
    y = anywhere(true, rate)
    assert torch.equal(p_wrong(x, y, CLASSES, 1.0, pattern=0.45), p_wrong(x, y, CLASSES, 1.0))


def test_where_wrong_labels_name_one_class_right_labels_of_classes_that_won_none_are_trusted() -> None:
    x, true = blobs()
    y = one_way(true)
    poor = (true % 2 == 1) & (y == true)
    before, after = (p_wrong(x, y, CLASSES, 1.0, pattern) < 0.5 for pattern in (1.0, 0.45))
    share = lambda trusted: float(trusted[poor].float().mean())  # noqa: E731
    right = lambda trusted: float((trusted == (y == true)).float().mean())  # noqa: E731
    assert share(after) > 0.95 > 0.9 > share(before)
    assert right(after) > right(before) + 0.02, (right(after), right(before))


def test_with_a_pattern_the_third_opinion_counts_and_each_follows_from_the_last() -> None:
    x, true = blobs(each=30)
    y = one_way(true)
    ridge = loo_ridge(x, y, CLASSES)
    loo = ridge.loo
    for k in range(3):
        p = (stack([loo], y)(loo) - torch.bincount(y).log()).softmax(1)
        model = fit_noise_model(p, y)
        flips = torch.zeros(CLASSES, CLASSES)
        for truth, given in zip(model.judge(p, y).truth, y.tolist(), strict=True):
            for c in range(CLASSES):
                flips[c, given] += truth[c] if c != given else 0.0
        torch.testing.assert_close(model.flips(p, y), flips, atol=1e-4, rtol=1e-4)
        assert k > 0 or flip_concentration(flips) > 0.45
        wrong = replace(model, others=main_targets(flips)).judge(p, y).p_wrong
        trust = (1 - wrong) * within_class_quota(wrong, y, CLASSES, 1.0)
        loo = weighted_loo_ridge(x, y, ridge, balance_weights(trust, y, CLASSES, 1.0))
    torch.testing.assert_close(p_wrong(x, y, CLASSES, 1.0, 0.45), wrong, atol=1e-3, rtol=0)


def test_main_targets_are_those_of_a_loop_and_no_label_is_impossible() -> None:
    flips = 10 * torch.rand(7, 7).square() * (1 - torch.eye(7))
    flips[3] = 0
    for row, named in zip(flips.tolist(), main_targets(flips), strict=True):
        k = flips.tolist().index(row)
        main = [n if n >= MAIN * max(row) else 0.0 for n in row]
        total = sum(main)
        for c in range(7):
            share = main[c] / total if total else 1 / 6
            expected = 0.0 if c == k else (1 - STRAY) * share + STRAY / 6
            assert float(named[c]) == pytest.approx(expected, abs=1e-6)


def test_concentration_is_one_where_each_class_is_mistaken_for_one_and_zero_where_for_all_alike() -> None:
    eye = torch.eye(5)
    assert flip_concentration(3 * eye.roll(1, 1)) == pytest.approx(1.0)
    assert flip_concentration(1 - eye) == pytest.approx(0.0, abs=1e-6)
    assert flip_concentration(0 * eye) == 0.0
    assert flip_concentration(torch.tensor([[0.0, 6, 2], [1, 0, 1], [0, 0, 0]])) == pytest.approx((0.7 - 0.5) / 0.5)


def test_of_two_classes_no_flip_can_be_told_from_another_and_nothing_changes() -> None:
    x, true = blobs(each=30)
    y = torch.where(torch.rand(len(true), generator=torch.Generator().manual_seed(3)) < 0.3, 0, true % 2)
    assert flip_concentration(torch.tensor([[0.0, 5], [0, 0]])) == 0.0
    assert torch.equal(p_wrong(x, y, 2, 1.0, pattern=0.45), p_wrong(x, y, 2, 1.0))
