"""The nouns of the project: what networks return, what an epoch learns from, what a method is made of."""

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
"""What learns: `head` on cached features (linear probing), `all` of backbone and head on samples (full fine-tuning)."""

ModelSelection = Literal["last", "noisy-val", "clean-val"]
"""Which epoch's model a run ends with: the last, or the best on a validation split by its given or its true labels."""

View = Literal["plain", "weak", "strong"]
"""An augmentation of a sample, by strength; `plain` is the evaluation preprocessing."""

Inputs = Tensor | Mapping[str, Tensor]
"""What a network takes: pixels [B, 3, H, W], features [B, D], or a tokenizer's tensors [B, T] by name."""


class Output(NamedTuple):
    """What every network of ours returns."""

    logits: Float[Tensor, "B C"]
    z: Float[Tensor, "B Z"]
    """What the classifier sees."""
    f: Float[Tensor, "B D"]
    """What the backbone gave."""


class Batch(NamedTuple):
    """What a loss sees of the samples of one step."""

    rows: Int[Tensor, " B"]
    """Rows of the training split, for the ledger."""
    y: Int[Tensor, " B"]
    """Given labels."""
    weight: Float[Tensor, " B"]
    """How far the plan trusts each label, 0..1."""
    views: tuple[Inputs, ...]
    """First the weak views, then the strong ones."""
    unlabeled: Batch | None = None
    """Samples of the plan's rest, whose labels are not to be read; None where the plan has no rest."""


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
    """Which samples an epoch learns from, and how far it trusts each label."""

    keep: Bool[Tensor, " N"]
    weight: Float[Tensor, " N"]
    unlabeled: Bool[Tensor, " N"] | None = None
    """Learned from without their label."""
    unlabeled_ratio: float = 1.0
    """Samples of the rest beside each kept sample of a batch."""
    draw: Float[Tensor, " N"] | None = None
    """With it, as many samples as are kept are drawn with replacement, in proportion to these numbers."""

    @classmethod
    def of(cls, keep: Bool[Tensor, " N"]) -> Selection:
        """A plan that trusts what it keeps fully."""
        return cls(keep, keep.float())


@dataclass(frozen=True)
class Range:
    """The range of a hyper-parameter: what a value outside is refused by."""

    low: float
    high: float
    log: bool = False
    search: Range | Choice | None = None
    """What a search draws from; none: it leaves the field alone unless its space names it."""


@dataclass(frozen=True)
class Choice:
    """The values a hyper-parameter can take."""

    values: tuple[Any, ...]
    search: Range | Choice | None = None
    """As of an interval."""


class EpochMetrics(dict[str, Any]):
    """One epoch's numbers; `phase` and `epoch` are always there."""


class Run(Protocol):
    """What a method may use: nets, given labels, the ledger, a generator, and three verbs.

    There is no true label, optimizer, device, rank, loader or file here, and none can be reached from here.
    """

    y: Int[Tensor, " N"]
    classes: int
    ledger: Ledger
    rng: torch.Generator
    epoch: int
    """Epoch of the phase, from 0."""
    progress: float
    """The same with the part of the epoch that is done, at each step of `learn`."""
    backbone_changed: bool
    """True once the backbone differs from the pre-trained one."""
    probe_statistics: ProbeStatistics | None
    """Statistics of the last probe; None before the first one has ended an epoch."""

    @property
    def nets(self) -> list[nn.Module]:
        """What learns in this phase: heads, which take features, or whole nets, which take samples."""
        ...

    @property
    def net(self) -> nn.Module:
        """The only net of a method that trains one."""
        ...

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """`fn(y, *logits)` of every training sample, without gradient, in the order of the rows: [N, ...]."""
        ...

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Float[Tensor, " N"]:
        """The probability that each given label is wrong, from the features of the moment (`opinions.p_wrong`)."""
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
        """Run SGD over the selected samples.

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
    """How long and how fast a phase learns.

    A rate of None is the backbone's own recommendation; the resolved config states it as a number.
    """

    epochs: Annotated[int, Range(0, 1000)] = 20
    """Epochs of the phase; 0 leaves the phase out."""
    learning_rate: Annotated[float, Range(1e-6, 10.0, log=True, search=Range(1e-5, 1e-2, log=True))] = 1e-3
    """Learning rate of the head."""
    backbone_learning_rate: Annotated[float | None, Range(1e-7, 1.0, log=True, search=Range(1e-6, 1e-2, log=True))] = (
        None
    )
    """Learning rate of the backbone where it learns; none: the recommendation for its architecture, which is for 64
    samples a step, times the root of `batch_size` / 64."""
    weight_decay: Annotated[float, Range(0.0, 10_000.0, search=Range(1e-6, 1e-1, log=True))] = 1e-4
    """Weight decay of head and backbone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate moves over the phase; cosine and linear end at zero."""
    warmup: Annotated[float, Range(0.0, 0.9)] = 0.0
    """Share of the phase over which the learning rate rises from zero."""
    batch_size: Annotated[int, Range(1, 65536, log=True, search=Choice((32, 64, 128)))] = 128
    """Samples a step."""
    lr_reference_dim: Annotated[int, Range(0, 1_000_000)] = 0
    """Length of features that `learning_rate` is meant for; shorter ones raise it in proportion, to 0.01; 0: never."""
    min_steps: Annotated[int, Range(0, 1_000_000)] = 0
    """Steps of the phase at the least: few samples are passed over again and again until there are as many."""
    freeze_batchnorm: bool = True
    """Keep BatchNorm's running statistics as pre-trained while the backbone learns."""


@dataclass(frozen=True)
class MLPHeadConfig:
    """An MLP of a head between the features and the classifier, from D numbers to D numbers."""

    ratio: Annotated[float, Range(0.01, 64.0)] = 4.0
    """Length of a hidden layer, in multiples of D."""
    layers: Annotated[int, Range(1, 8)] = 1
    """Hidden layers, each with a ReLU."""
    norm: Literal["none", "batch"] = "batch"
    """What stands before each ReLU: nothing as in the paper, or BatchNorm as in the authors' code."""
    residual: bool = True
    """Add the features to what the MLP gives, as the authors' code does and the paper does not."""
    residual_scale: Annotated[float, Range(-10.0, 10.0)] = 1.0
    """What the MLP's part is multiplied with at first, by dimension; it is learned. With the residual only."""
    classifier: Literal["kaiming", "zeros"] = "kaiming"
    """Initial weights of the classifier: Kaiming-uniform as in the authors' code, or zeros."""
    standardize: bool = False
    """Standardize features by dimension before the MLP; the strength of the covariance term depends on their scale."""
    dropout: Annotated[float, Range(0.0, 0.95)] = 0.0
    """Share of a sample's dimensions that the MLP does not see in a step (0 in their place), drawn anew each time."""


@dataclass(frozen=True)
class Phase:
    """A named part of a method."""

    name: str
    scope: Scope
    stage: Stage
    epoch: Callable[[Run], None] = field(compare=False)
    head: Literal["new", "same", "own"] = "new"
    """Begin with a new head, with the head of the phase before, or with the head and the optimizer that the last
    phase of this name left."""
    span: tuple[float, float] = (0.0, 1.0)
    """The part of the stage's schedule that the phase runs through, where phases of one name share a schedule."""
    nets: int = 1
    """How many nets learn; all phases of a method name the same number."""
    views: tuple[View, ...] = ()
    """Kinds of augmented views that scope `head` draws from a cache; without them the plain features serve."""
    projection: int = 0
    """Length of a projection beside the classifier of a new head, for contrastive losses; 0: none."""
    mlp: MLPHeadConfig | None = None
    """A new head reshapes the features by an MLP before its classifier; none: it is linear."""


class Method(Protocol):
    """A method is a frozen dataclass of its hyper-parameters, and the phases they make.

    The field `scope` says what learns in its last phase. `presets` are named settings by the type of the backbone
    ("vit", "resnet", …), such as those of the paper.
    """

    presets: ClassVar[Mapping[str, Callable[[str], Method]]]

    @property
    def scope(self) -> Scope:
        """What learns in the last phase."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """The phases in their order."""
        ...
