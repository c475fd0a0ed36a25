"""Types shared by methods, training and configuration: batches, selections, phases, and the protocols of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from cleantune.methods.ledger import Ledger

Scope = Literal["head", "all"]
"""Trained part: `head` on cached features (linear probing), or `all` of backbone and head (full fine-tuning)."""

ModelSelection = Literal["last", "noisy-val", "clean-val"]
"""Epoch of the selected model: the last, or the best on the validation split by its given or its true labels."""

View = Literal["plain", "weak", "strong"]
"""Augmentation of a sample by strength; `plain` is the evaluation preprocessing."""

Inputs = Tensor | Mapping[str, Tensor]
"""Input of a network: pixels [B, 3, H, W], features [B, D], or the tensors [B, T] of a tokenizer by name."""


class Output(NamedTuple):
    """Output of a network."""

    logits: Float[Tensor, "B C"]
    embedding: Float[Tensor, "B Z"]
    """Input of the classifier."""
    features: Float[Tensor, "B D"]
    """Output of the backbone."""


class Batch(NamedTuple):
    """Samples of one training step."""

    indices: Int[Tensor, " B"]
    """Rows of the training split and of the ledger."""
    y: Int[Tensor, " B"]
    """Given labels."""
    weight: Float[Tensor, " B"]
    """Weight of each sample in the loss."""
    views: tuple[Inputs, ...]
    """Weak views, then strong views."""
    unlabeled: Batch | None = None
    """Samples whose labels are not to be read; None if the selection has none."""


class LossOutput(NamedTuple):
    """A loss with its components, which are logged by epoch."""

    total: Float[Tensor, ""]
    """Loss whose gradient is taken."""
    components: Mapping[str, Float[Tensor, ""]]
    """Unweighted terms by name; their means over the epoch are logged as `loss_<name>`."""
    warning: str | None = None
    """Message for the user, shown once."""


@dataclass(frozen=True)
class ProbeStatistics:
    """Per-sample statistics of the last phase of scope `head` that learned from every sample.

    Averages over the epochs of a probe separate wrong labels from right ones better than its last epoch
    (arXiv:2510.16211).
    """

    loss: Float[Tensor, " N"]
    """Cross-entropy of the given label in nats, averaged over all epochs."""
    late_loss: Float[Tensor, " N"]
    """Cross-entropy of the given label in nats, averaged over the second half of the epochs."""
    late_probabilities: Float[Tensor, "N C"]
    """Predicted probabilities, averaged over the second half of the epochs."""


@dataclass(frozen=True)
class Selection:
    """Training samples of an epoch and their weights."""

    mask: Bool[Tensor, " N"]
    """Samples that are trained on with their label."""
    weight: Float[Tensor, " N"]
    """Weight of each sample in the loss."""
    unlabeled: Bool[Tensor, " N"] | None = None
    """Samples that are trained on without their label."""
    unlabeled_ratio: float = 1.0
    """Unlabeled samples per labeled sample of a batch."""
    sampling_weights: Float[Tensor, " N"] | None = None
    """Weights for drawing as many samples as the mask has, with replacement; None for a permutation of the mask."""

    @classmethod
    def of(cls, mask: Bool[Tensor, " N"]) -> Selection:
        """Return a selection that gives its samples weight 1."""
        return cls(mask, mask.float())


@dataclass(frozen=True)
class Range:
    """Valid range of a numeric setting, bounds included."""

    low: float
    high: float
    log: bool = False
    """Draw on a logarithmic scale."""
    search: Range | Categorical | None = None
    """Range that a search draws from; None leaves the setting alone unless the search space names it."""


@dataclass(frozen=True)
class Categorical:
    """Valid values of a setting."""

    values: tuple[Any, ...]
    search: Range | Categorical | None = None
    """Range that a search draws from; None leaves the setting alone unless the search space names it."""


class EpochMetrics(dict[str, Any]):
    """Metrics of one epoch by name; `phase` and `epoch` are always present."""


class Run(Protocol):
    """Interface of the trainer for methods: networks, given labels, ledger, generator, and three operations.

    A method cannot reach true labels, optimizers, devices, ranks, loaders or files from here.
    """

    y: Int[Tensor, " N"]
    """Given labels of the training split."""
    classes: int
    """Number of classes C."""
    ledger: Ledger
    """Per-sample memory of the method, saved with the checkpoint."""
    rng: torch.Generator
    """The only source of random numbers that a checkpoint restores."""
    epoch: int
    """Epoch of the phase, from 0."""
    progress: float
    """Epoch of the phase with the finished fraction of the current one, updated at each step of `learn`."""

    @property
    def probe_statistics(self) -> ProbeStatistics | None:
        """Return the statistics of the last probe; None before the first one has ended an epoch."""
        ...

    @property
    def nets(self) -> list[nn.Module]:
        """Return the networks of the phase: heads, which take features, or whole networks, which take samples."""
        ...

    @property
    def net(self) -> nn.Module:
        """Return the network of a method that trains a single one."""
        ...

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """Return `fn(y, *logits)` of every training sample in the order of the split [N, ...], without gradient."""
        ...

    def p_wrong(self, class_balance: float, flip_concentration_threshold: float) -> Float[Tensor, " N"]:
        """Return the probability that each given label is wrong, estimated from the current features.

        Args:
            class_balance: Exponent of the class balance in the prior: 1 makes all classes equally probable.
            flip_concentration_threshold: Concentration of the label flips above which only the main targets of each
                class remain in the noise model; 1 disables the rule.
        """
        ...

    def learn(
        self,
        nets: nn.Module | list[nn.Module],
        loss: Callable[..., Tensor | LossOutput],
        selection: Selection | None = None,
        *,
        weak: int = 1,
        strong: int = 0,
        passes: float = 1.0,
    ) -> None:
        """Train on the selected samples by stochastic gradient descent.

        Args:
            nets: Networks to train, each with its own optimizer.
            loss: Function `loss(*nets, batch)` that returns a scalar or a `LossOutput`.
            selection: Samples and their weights; None trains on every sample with weight 1.
            weak: Number of weak views of each sample.
            strong: Number of strong views of each sample.
            passes: Number of passes over the selected samples; the last one may be a fraction of a pass.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """Training schedule of a phase."""

    epochs: Annotated[int, Range(0, 1000)] = 20
    """Epochs of the phase; 0 leaves the phase out."""
    learning_rate: Annotated[float, Range(1e-6, 10.0, log=True, search=Range(1e-5, 1e-2, log=True))] = 1e-3
    """Learning rate of the head."""
    backbone_learning_rate: Annotated[float | None, Range(1e-7, 1.0, log=True, search=Range(1e-6, 1e-2, log=True))] = (
        None
    )
    """Learning rate of the backbone in scope `all`. If it is not set: the recommendation for the architecture, which is
    for batches of 64, times the root of `batch_size` / 64. The resolved config states the number."""
    weight_decay: Annotated[float, Range(0.0, 10_000.0, search=Range(1e-6, 1e-1, log=True))] = 1e-4
    """Weight decay of head and backbone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning-rate schedule over the phase; cosine and linear end at zero."""
    warmup: Annotated[float, Range(0.0, 0.9)] = 0.0
    """Fraction of the phase over which the learning rate rises linearly from zero."""
    batch_size: Annotated[int, Range(1, 65536, log=True, search=Categorical((32, 64, 128)))] = 128
    """Samples per step."""
    lr_reference_dim: Annotated[int, Range(0, 1_000_000)] = 0
    """Feature dimension that `learning_rate` is meant for; shorter features raise it in proportion, up to 0.01; 0
    disables the rule."""
    min_steps: Annotated[int, Range(0, 1_000_000)] = 0
    """Minimum number of steps of the phase; small data sets are repeated until it is reached."""
    freeze_batchnorm: bool = True
    """Keep the pre-trained running statistics of BatchNorm in fine-tuning."""


@dataclass(frozen=True)
class MLPHeadConfig:
    """MLP between the features and the classifier of a head, from D dimensions to D dimensions."""

    ratio: Annotated[float, Range(0.01, 64.0)] = 4.0
    """Width of a hidden layer in multiples of D."""
    layers: Annotated[int, Range(1, 8)] = 1
    """Number of hidden layers, each with a ReLU."""
    norm: Literal["none", "batch"] = "batch"
    """Normalization before each ReLU: none (paper of NMTune) or BatchNorm (its official code)."""
    residual: bool = True
    """Add the features to the output of the MLP, as in the official code but not in the paper."""
    residual_scale: Annotated[float, Range(-10.0, 10.0)] = 1.0
    """Initial value of the learned scale per dimension of the MLP's output; with `residual` only."""
    classifier: Literal["kaiming", "zeros"] = "kaiming"
    """Initial weights of the classifier: Kaiming-uniform (official code) or zeros."""
    standardize: bool = False
    """Standardize features by dimension before the MLP; the strength of the covariance term depends on their scale."""
    dropout: Annotated[float, Range(0.0, 0.95)] = 0.0
    """Dropout probability of the dimensions before the MLP."""


@dataclass(frozen=True)
class Phase:
    """A named part of the training of a method."""

    name: str
    scope: Scope
    stage: Stage
    epoch: Callable[[Run], None] = field(compare=False)
    """Function that trains for one epoch."""
    head: Literal["new", "same", "resume"] = "new"
    """Initial head: a new one, that of the previous phase, or head and optimizer of the last phase of this name."""
    schedule_span: tuple[float, float] = (0.0, 1.0)
    """Part of the stage's schedule that the phase runs through, if phases of one name share a schedule."""
    num_nets: int = 1
    """Number of networks, the same in all phases of a method."""
    views: tuple[View, ...] = ()
    """Augmented views that scope `head` draws from a cache; empty for plain features."""
    projection_dim: int = 0
    """Dimension of a projection next to the classifier of a new head, for contrastive losses; 0 for none."""
    mlp: MLPHeadConfig | None = None
    """MLP of a new head before its classifier; None for a linear head."""


class Method(Protocol):
    """Interface of a method: a frozen dataclass of its settings that returns its phases.

    The field `scope` is the scope of its last phase. `presets` maps names of settings, such as `paper`, to functions
    from the type of the backbone ("vit", "resnet", …) to the method with these settings.
    """

    presets: ClassVar[Mapping[str, Callable[[str], Method]]]

    @property
    def scope(self) -> Scope:
        """Return the scope of the last phase."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in their order."""
        ...
