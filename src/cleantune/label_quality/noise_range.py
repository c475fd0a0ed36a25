"""Ranges of noise rates over the noise models that fit the given labels about as well."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.label_quality.noise_model import NoiseModel

NORMAL_QUANTILE = 1.96
"""Standard errors that are added for sampling."""


def transition_matrix(joint: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """Return P(given = column | true = row) from expected counts; a class without any keeps its labels."""
    size = joint.sum(1, keepdim=True)
    return torch.where(size > 0, joint / size.clamp(min=1e-12), torch.eye(len(joint)))


class NoiseRange:
    """Spread of fitted noise models on the samples that they were fitted on.

    Each label takes its lowest and highest probability under the models, and the error of sampling is added. The range
    is wide where the probabilities are unsure, because an unsure model and a wrong label look alike.
    """

    def __init__(self, models: list[NoiseModel], p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> None:
        """Apply every model to the samples.

        Args:
            models: The default model first.
            p: Class probabilities.
            y: Given labels.
        """
        self.y, self.num_classes = y, p.shape[1]
        wrong, joints = [], []
        for model in models:
            labels = model.calibrate(p, y)
            wrong.append(labels.p_wrong)
            joints.append(torch.zeros(self.num_classes, self.num_classes).index_add_(0, y, labels.posterior).T)
        stacked = torch.stack(wrong)
        self.default, self.low, self.high = stacked[0], stacked.min(0).values, stacked.max(0).values
        self.joints = torch.stack(joints)

    def of_rate(self, rate: float, count: int) -> tuple[float, float]:
        """Return the lowest and highest noise rate of `count` labels.

        Args:
            rate: Rate under the default model.
            count: Number of labels.
        """
        low = max(rate + float((self.low - self.default).mean()), 0.0)
        high = min(rate + float((self.high - self.default).mean()), 1.0)
        error = [NORMAL_QUANTILE * (r * (1 - r) / count) ** 0.5 for r in (low, high)]
        return max(low - error[0], 0.0), min(high + error[1], 1.0)

    def by_class(self, p_wrong: Float[Tensor, " M"], y: Int[Tensor, " M"]) -> Float[Tensor, "C 3"]:
        """Return the rate of each given class with its lowest and highest value.

        Args:
            p_wrong: Probability of each label to be wrong, of all samples.
            y: Their given labels.
        """
        out = torch.zeros(self.num_classes, 3)
        for c in range(self.num_classes):
            members, fitted = y == c, self.y == c
            size = int(members.sum())
            if not size:
                continue
            rate = float(p_wrong[members].mean())
            if not bool(fitted.any()):
                out[c] = torch.tensor([rate, 0.0, 1.0])
                continue
            gap = [float((side - self.default)[fitted].mean()) for side in (self.low, self.high)]
            low, high = max(rate + gap[0], 0.0), min(rate + gap[1], 1.0)
            error = [NORMAL_QUANTILE * (max(r * (1 - r), 0.25 / size) / size) ** 0.5 for r in (low, high)]
            out[c] = torch.tensor([rate, max(low - error[0], 0.0), min(high + error[1], 1.0)])
        return out

    def of_transition(self, transition: Float[Tensor, "C C"], size: Float[Tensor, " C"]) -> Float[Tensor, "2 C C"]:
        """Return the lowest and highest transition matrix.

        Args:
            transition: Matrix under the default model.
            size: Expected number of samples of each true class.
        """
        rows = torch.stack([transition_matrix(joint) for joint in self.joints])
        low = (transition + rows.min(0).values - rows[0]).clamp(0, 1)
        high = (transition + rows.max(0).values - rows[0]).clamp(0, 1)
        error = [NORMAL_QUANTILE * (side * (1 - side) / size.clamp(min=1)[:, None]).sqrt() for side in (low, high)]
        return torch.stack([(low - error[0]).clamp(min=0), (high + error[1]).clamp(max=1)])
