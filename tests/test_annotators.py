"""Votes of several annotators."""

from __future__ import annotations

import torch

from cleantune.label_quality.annotators import dawid_skene_posterior


def test_reliable_annotators_outweigh_an_unsure_probe() -> None:
    true = torch.randint(3, (900,))
    unsure = torch.full((900, 3), 0.2)
    unsure[torch.arange(900), true] = 0.6
    reliable = torch.where(torch.rand(2, 900) < 0.95, true, (true + 1) % 3)
    unreliable = torch.randint(3, (2, 900))
    assert (dawid_skene_posterior(unsure, reliable).argmax(1) == true).float().mean() > 0.97
    assert (dawid_skene_posterior(unsure, unreliable).argmax(1) == true).float().mean() > 0.9


def test_without_votes_the_prior_is_returned() -> None:
    prior = torch.softmax(torch.randn(50, 3), 1)
    assert torch.allclose(dawid_skene_posterior(prior, torch.full((1, 50), -1)), prior, atol=1e-5)
