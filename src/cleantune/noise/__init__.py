"""Noise models: pure functions that turn labels into labels of which a stated share is wrong, seeded and measured.

Sources: symmetric and asymmetric as DivideMix (arXiv:2002.07394) and ELR (arXiv:2007.00151) draw them; instance
dependent as CORES (arXiv:2010.02347) and PDN (arXiv:2006.07836) do.
"""

from cleantune.noise.flip import CIFAR10_MAP, CIFAR100_SUPERCLASS, flip, measure, transition
from cleantune.noise.instance import truncated_normal
from cleantune.noise.model import Noise, parse, spell
from cleantune.noise.pairs import swap

__all__ = [
    "CIFAR10_MAP",
    "CIFAR100_SUPERCLASS",
    "Noise",
    "flip",
    "measure",
    "parse",
    "spell",
    "swap",
    "transition",
    "truncated_normal",
]
