from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.config.run import configure
from cleantune.methods.protocol import Stage
from cleantune.studies.compare.matrix import scale_learning_rates
from cleantune.training.epochs import phases
from cleantune.training.optim import REFERENCE_BATCH_SIZE, backbone_learning_rate_at, lr_factor

STAGE = Stage(epochs=1, learning_rate=1e-2, backbone_learning_rate=1e-3, batch_size=32)


def test_lr_factor_rises_and_falls_as_the_schedule_states() -> None:
    cosine, constant = replace(STAGE, warmup=0.2), replace(STAGE, schedule="constant", warmup=0.2)
    assert 0 < lr_factor(cosine, 0.0) <= 1e-3
    assert lr_factor(cosine, 0.1) == pytest.approx(0.5)
    assert lr_factor(cosine, 0.2) == pytest.approx(1.0)
    assert lr_factor(cosine, 0.6) == pytest.approx(0.5)
    assert lr_factor(cosine, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert lr_factor(constant, 0.1) == pytest.approx(0.5)
    assert lr_factor(constant, 1.0) == lr_factor(constant, 0.3) == 1.0
    assert lr_factor(STAGE, 0.0) == 1.0
    falling = [lr_factor(cosine, 0.2 + 0.8 * k / 50) for k in range(51)]
    assert falling == sorted(falling, reverse=True)


@given(st.integers(1, 4096), st.floats(1e-6, 1e-2))
def test_backbone_learning_rate_grows_with_root_of_batch_size(size, recommended):
    at = {
        n: backbone_learning_rate_at(Stage(batch_size=n), recommended) for n in (size, 4 * size, REFERENCE_BATCH_SIZE)
    }
    assert at[4 * size] == pytest.approx(2 * at[size], rel=0.011), "three digits each"
    assert at[REFERENCE_BATCH_SIZE] == pytest.approx(recommended, rel=0.005)


def test_explicit_learning_rate_stays_and_others_are_scaled():
    config = configure({"data": {"data": "images"}, "method": {"name": "robust"}})
    turn: Any = config.method
    set_to = replace(turn, tune=replace(turn.tune, backbone_learning_rate=7e-4))

    def stated(method: Any) -> set[float]:
        return {p.stage.backbone_learning_rate for p in phases(method, 5e-4) if p.scope == "all"}

    assert stated(set_to) == {7e-4}
    assert stated(turn) == {backbone_learning_rate_at(turn.tune, 5e-4)} != {5e-4}, (
        "its batches are not of the size that rates are for"
    )
    assert list(stated(scale_learning_rates(config, 3.0, 5e-4).method)) == [
        pytest.approx(3 * backbone_learning_rate_at(turn.tune, 5e-4))
    ]
