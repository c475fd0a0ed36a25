"""Sampling of training batches: the order of a pass, its batches, and unlabeled samples next to them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from cleantune.data.model_inputs import to_device
from cleantune.methods.protocol import Batch, Selection, Stage, View
from cleantune.training.batches import BatchSource


def split_batches(order: Int[Tensor, " N"], batch_size: int, min_size: int = 2) -> list[Tensor]:
    """Split indices into batches.

    Args:
        order: Indices [N] in the order of the pass.
        batch_size: Samples in a batch.
        min_size: A smaller last batch is merged into the one before it: BatchNorm cannot train on one sample.
    """
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) < min_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def min_batch_size(batch_size: int) -> int:
    """Return the smallest last batch of a training pass: an eighth of a batch.

    A step on two left-over samples would move the weights as far as one on eighty.
    """
    return max(2, batch_size // 8)


def min_passes(stage: Stage, num_samples: int) -> float:
    """Return the passes an epoch needs for the minimum number of steps of its stage."""
    return stage.min_steps / stage.epochs / -(-num_samples // stage.batch_size)


def view_kinds(weak: int, strong: int) -> tuple[View, ...]:
    """Return the kinds of the views of a sample: first the weak ones, then the strong ones."""
    weak_views: list[View] = ["weak"] * weak
    strong_views: list[View] = ["strong"] * strong
    return (*weak_views, *strong_views)


def draw_order(selection: Selection, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Draw the samples of one pass: a permutation of the selected ones, or a weighted draw with replacement."""
    if selection.sampling_weights is not None:
        count = int(selection.mask.sum())
        return torch.multinomial(selection.sampling_weights.double(), count, replacement=True, generator=generator)
    selected = selection.mask.nonzero().flatten()
    return selected[torch.randperm(len(selected), generator=generator)]


def draw_batches(
    selection: Selection, fraction: float, batch_size: int, min_samples: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw the batches of a pass.

    Args:
        selection: Selected samples.
        fraction: Fraction of the pass.
        batch_size: Samples in a batch.
        min_samples: Fewest samples of the pass.
        generator: Generator of the order.
    """
    order = draw_order(selection, generator)
    order = order[: max(min_samples, round(fraction * len(order)))]
    return split_batches(order, batch_size, min_batch_size(batch_size))


def draw_unlabeled(selection: Selection, batches: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw the unlabeled samples that accompany each batch, in shuffled rounds over all of them.

    Returns:
        Indices for each batch; an empty list if the selection has no unlabeled samples.
    """
    if selection.unlabeled is None or not selection.unlabeled.any():
        return []
    unlabeled = selection.unlabeled.nonzero().flatten()
    sizes = [max(1, int(selection.unlabeled_ratio * len(batch))) for batch in batches]
    total = sum(sizes)
    rounds = -(-total // len(unlabeled))
    order = torch.cat([unlabeled[torch.randperm(len(unlabeled), generator=generator)] for _ in range(rounds)])
    return list(torch.split(order[:total], sizes))


def load_batches(
    source: BatchSource,
    y: Int[Tensor, " N"],
    selection: Selection,
    batches: list[Tensor],
    unlabeled: list[Tensor],
    views: tuple[View, ...],
    seed: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield batches on a device, with their unlabeled samples where there are any.

    Args:
        source: Samples or cached features of the training split.
        y: Given labels [N].
        selection: Weights of the samples.
        batches: Indices of each batch.
        unlabeled: Indices of the unlabeled samples of each batch, or an empty list.
        views: Views of each sample.
        seed: Seed of the augmentations.
        device: Device of the models; the rows of a batch stay on the CPU, as the ledger does.
    """
    prefetch = device.type == "cuda"  # on a CPU, a background thread competes with training for the cores

    def load(indices: list[Tensor], weight: Tensor, seed: int) -> Iterator[Batch]:
        items = source.batches(indices, views, seed, prefetch=prefetch)
        order, sizes = torch.cat(indices), list(map(len, indices))
        labels = torch.split(y[order].to(device), sizes)  # moved once a pass
        weights = torch.split(weight[order].to(device), sizes)
        for (rows, xs), label, w in zip(items, labels, weights, strict=True):
            yield Batch(rows, label, w, tuple(to_device(x, device) for x in xs))

    labeled = load(batches, selection.weight, seed)
    if not unlabeled:
        return labeled
    others = load(unlabeled, torch.zeros(len(y)), seed + 1)
    return (batch._replace(unlabeled=other) for batch, other in zip(labeled, others, strict=True))
