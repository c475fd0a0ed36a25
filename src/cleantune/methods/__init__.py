"""Methods by name; each is one file and one line of this table."""

from __future__ import annotations

from cleantune.methods.coteaching import CoTeaching
from cleantune.methods.dividemix import DivideMix
from cleantune.methods.elr import ELR
from cleantune.methods.nmtune import MLP, NMTune
from cleantune.methods.protocol import Method
from cleantune.methods.robust import Robust
from cleantune.methods.robust_loss import CE, GCE
from cleantune.methods.turn import TURN
from cleantune.methods.unicon import UNICON

METHODS: dict[str, type[Method]] = {
    "robust": Robust,
    "turn": TURN,
    "ce": CE,
    "gce": GCE,
    "elr": ELR,
    "coteaching": CoTeaching,
    "dividemix": DivideMix,
    "unicon": UNICON,
    "nmtune": NMTune,
    "mlp": MLP,
}
