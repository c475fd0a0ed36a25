"""Evaluation passes of models over the splits of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cleantune.data.model_inputs import raw_inputs, to_device
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.features.openvino import OpenVINOEncoder
from cleantune.methods.protocol import Inputs
from cleantune.training.batches import BatchSource, FeatureBatches, SampleBatches, SplitData
from cleantune.training.cost import Cost
from cleantune.training.models import Model
from cleantune.training.sampling import split_batches

GROUP = 16
"""Batches that a compiled backbone passes at a time, so that their features stay in memory."""


class Predictor:
    """Evaluation passes over the splits, in the order of their rows.

    Cached features take the place of the samples as long as they are those of the current backbone: such a pass costs
    no forward pass. Several processes divide the batches of a pass, and all of them receive all results.
    """

    def __init__(
        self,
        splits: Mapping[str, SplitData],
        device: torch.device | str = "cpu",
        cost: Cost | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
        *,
        is_sharded: bool = False,
    ) -> None:
        """Begin with the features of the pre-trained backbone.

        Args:
            splits: Labels, features and samples by split.
            device: Device of the models.
            cost: Counters of the run, to which the passes are added.
            process_group: Processes that divide the batches.
            is_sharded: The backbones are divided among the processes (FSDP).
        """
        self.splits = dict(splits)
        self.features_stale = False
        """True if the backbones have changed since the features were computed."""
        self.cost = cost or Cost()
        self.device = torch.device(device)
        self.process_group = process_group
        self.is_sharded = is_sharded
        self._pretrained = dict(splits)
        self._probabilities: dict[str, Tensor] = {}

    def weights_changed(self, *, backbone: bool) -> None:
        """Forget cached predictions, and mark the features as stale if the backbones changed."""
        self._probabilities = {}
        self.features_stale |= backbone

    def reset_features(self) -> None:
        """Return to the features of the pre-trained backbone."""
        self.splits = dict(self._pretrained)
        self._probabilities, self.features_stale = {}, False

    def evaluate(self, split: str, fn: Callable[..., Tensor], modules: Sequence[nn.Module]) -> Shaped[Tensor, "N ..."]:
        """Return `fn(y, *logits)` of every sample of a split, without gradients.

        Args:
            split: Name of the split.
            fn: Function from labels [B] and the scores [B, C] of every module to a tensor [B, ...].
            modules: Models, or heads while the features are current.
        """
        data, models = self.splits[split], [module for module in modules if isinstance(module, Model)]
        source: BatchSource = data.features
        if self.features_stale:
            assert data.samples is not None
            source = data.samples
        else:
            modules = [module.head if isinstance(module, Model) else module for module in modules]

        def fn_of_batch(index: Tensor, x: Inputs) -> Tensor:
            return fn(data.y[index].to(self.device), *(module(x).logits.float() for module in modules))

        for module in modules:
            module.eval()
        return self._map(source, fn_of_batch, models)

    def probabilities(self, split: str, models: Sequence[Model]) -> Float[Tensor, "N C"]:
        """Return the class probabilities of a split, averaged over the models; counted as evaluation.

        Those of held-out splits are cached until weights change.
        """
        if split in self._probabilities:
            return self._probabilities[split]
        with self.cost.track("evaluate", "evaluation_forward_passes", models):
            p = self.evaluate(split, _mean_probability, models)
        if split != "train":
            self._probabilities[split] = p
        return p

    def features(self, splits: Sequence[str], model: Model) -> dict[str, Any]:
        """Return the features [N, D] of splits by the current backbone, computed again where the cached are stale."""
        if not self.features_stale:
            return {split: self.splits[split].features.plain for split in splits}
        encoder = self._encoder(model)
        return {split: self._extract(split, model, encoder) for split in splits}

    def refresh_features(self, models: Sequence[Model]) -> None:
        """Compute the features of all splits again if they are stale."""
        if not self.features_stale:
            return
        assert len(models) == 1, "heads of several models cannot share features once their backbones differ"
        encoder = self._encoder(models[0])
        for split, data in self.splits.items():
            self.splits[split] = replace(data, features=FeatureBatches(self._extract(split, models[0], encoder)))
        self.features_stale = False

    # -- passes ------------------------------------------------------------------------------------------------------

    def _extract(self, split: str, model: Model, encoder: OpenVINOEncoder | None) -> Float[Tensor, "N D"]:
        """Compute the features of a split by the current backbone."""
        samples = self.splits[split].samples
        assert samples is not None
        model.eval()
        is_train = split == "train"
        section = "score" if is_train else "evaluate"
        with self.cost.track(section, "forward_passes" if is_train else "evaluation_forward_passes", [model]):
            if encoder is not None:
                return self._encode(encoder, model, samples)
            return self._map(samples, lambda _, x: model.features(x), [model])

    def _encoder(self, model: Model) -> OpenVINOEncoder | None:
        """Compile the current backbone with OpenVINO where the pre-trained one was."""
        samples = self.splits["train"].samples
        assert isinstance(samples, SampleBatches)
        if model.inference.name != "openvino" or model.backbone is None or self.is_sharded:
            return None
        example = raw_inputs(samples.inputs, torch.arange(min(2, len(samples))))
        return OpenVINOEncoder(model.backbone, example, model.inference.precision.dtype, model.inference.num_streams)

    def _encode(self, encoder: OpenVINOEncoder, model: Model, samples: SampleBatches) -> Tensor:
        """Return the features of all samples by a compiled backbone."""
        batches = split_batches(samples.order(), samples.eval_batch_size)
        local = self.process_group.shard_batches(batches)

        def features() -> Iterator[Tensor]:
            for start in range(0, len(local), GROUP):
                group = samples.raw_batches(local[start : start + GROUP])
                yield from (rows for _, rows in encoder.stream(group))

        with self._counting_all_processes([model], batches):
            rows = _concatenate(features(), sum(map(len, local)))
            model.num_evaluated += sum(map(len, local))
        return self._gather(batches, rows)

    def _map(self, source: BatchSource, fn: Callable[[Tensor, Inputs], Tensor], models: Sequence[Model]) -> Tensor:
        """Return `fn(index, x)` of all samples of a source in the plain view, in the order of the rows."""
        batches = split_batches(source.order(), source.eval_batch_size)
        local = self.process_group.shard_batches(batches)
        with torch.no_grad(), self._counting_all_processes(models, batches):
            items = source.batches(local, ("plain",), 0, prefetch=self.device.type == "cuda")
            results = (fn(index, to_device(views[0], self.device)).cpu() for index, views in items)
            rows = _concatenate(results, sum(map(len, local)))
        return self._gather(batches, rows)

    def _gather(self, batches: list[Tensor], rows: Tensor) -> Tensor:
        """Return the results of all processes in the order of the rows."""
        world_size = self.process_group.world_size
        by_rank = [batches[rank::world_size] for rank in range(world_size)]
        results = self.process_group.all_gather(rows, [sum(map(len, share)) for share in by_rank])
        order = torch.cat([batch for share in by_rank for batch in share])
        if torch.equal(order, torch.arange(len(order))):
            return results
        values = torch.empty_like(results)
        values[order] = results
        return values

    @contextmanager
    def _counting_all_processes(self, models: Sequence[Model], batches: list[Tensor]) -> Iterator[None]:
        """Count the forward passes of all processes, of which this one makes a part."""
        before = [model.num_evaluated for model in models]
        yield
        if self.process_group.world_size > 1:
            local, total = (sum(map(len, part)) for part in (self.process_group.shard_batches(batches), batches))
            for model, count in zip(models, before, strict=True):
                model.num_evaluated = count + (model.num_evaluated - count) * total // local


def _mean_probability(_: Tensor, *logits: Tensor) -> Tensor:
    return torch.stack([scores.softmax(1) for scores in logits]).mean(0)


def _concatenate(blocks: Iterable[Shaped[Tensor, "n ..."]], count: int) -> Shaped[Tensor, "N ..."]:
    """Concatenate blocks of `count` rows in all, each copied as it comes: `torch.cat` would need the memory twice."""
    out, start = torch.empty(0), 0
    for rows in blocks:
        if not start:
            out = rows.new_empty((count, *rows.shape[1:]))
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out
