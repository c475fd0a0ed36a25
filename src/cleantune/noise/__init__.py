"""Label noise for injection: pure, seeded functions from labels to labels of which a stated fraction is wrong.

Symmetric and asymmetric noise follow DivideMix (arXiv:2002.07394) and ELR (arXiv:2007.00151), instance-dependent noise
CORES (arXiv:2010.02347) and PDN (arXiv:2006.07836).
"""

from cleantune.noise.flip import (
    CIFAR10_MAP,
    CIFAR100_SUPERCLASS,
    flip_labels,
    measure_noise,
    transition_matrix,
)
from cleantune.noise.instance import truncated_normal
from cleantune.noise.model import Noise, format_noise, parse_noise
from cleantune.noise.pairs import swap_pairs

__all__ = [
    "CIFAR10_MAP",
    "CIFAR100_SUPERCLASS",
    "Noise",
    "flip_labels",
    "format_noise",
    "measure_noise",
    "parse_noise",
    "swap_pairs",
    "transition_matrix",
    "truncated_normal",
]
