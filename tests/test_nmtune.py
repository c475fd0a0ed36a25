"""NMTune as a method: its head, its loss, its presets, two views, wrong labels, and TURN's probe on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import InMemory, _one_thread, backbone, blobs, loop_on, new_head, quick, trained  # noqa: F401
from torch import Tensor

from cleantune.config.run import configure
from cleantune.functional import losses
from cleantune.functional.standardize import mean_and_std
from cleantune.methods.nmtune import MLP, NMTune, forward_views
from cleantune.methods.protocol import Batch, MLPHeadConfig, Output, Stage
from cleantune.methods.robust import Robust
from cleantune.pipeline.export import load_model, save_model
from cleantune.training.batches import FeatureBatches, SplitData
from cleantune.training.checkpoint import Checkpoint
from cleantune.training.heads import MLPHead
from cleantune.training.models import Model
from cleantune.training.optim import lr_factor

SHORT = Stage(epochs=3, learning_rate=1e-2, batch_size=32)


PLAIN = MLPHeadConfig()


def head(mlp: MLPHeadConfig = PLAIN, width: int = 6, classes: int = 3) -> MLPHead:
    return MLPHead(width, classes, mlp, generator=torch.Generator().manual_seed(0))


class Bare:
    """The part of a run that the loss without a ledger uses."""

    progress = 1.0


def batch(views: tuple[Tensor, ...], y: Tensor) -> Batch:
    return Batch(torch.arange(len(y)), y, torch.ones(len(y)), views)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("residual", [True, False])
def test_the_head_equals_the_formulas_of_the_paper(layers: int, norm: Any, residual: bool) -> None:
    model = head(MLPHeadConfig(layers=layers, norm=norm, residual=residual, residual_scale=0.5)).eval()
    f = torch.randn(5, 6)
    u = f
    for layer in model.layers:
        u = layer(u)
    z = 0.5 * u + f if residual else u
    out = model(f)
    torch.testing.assert_close(out.embedding, z)
    torch.testing.assert_close(out.logits, z @ model.linear.weight.T + model.linear.bias)
    torch.testing.assert_close(out.features, f)
    linear = [m for m in model.layers if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [24] * layers + [6]
    assert sum(isinstance(m, torch.nn.ReLU) for m in model.layers) == layers
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in model.layers) == (layers if norm == "batch" else 0)


def test_the_head_has_the_expected_number_of_parameters() -> None:
    D, C = 6, 3
    plain = sum(p.numel() for p in head(MLPHeadConfig(norm="none", residual=False)).parameters())
    whole = sum(p.numel() for p in head().parameters())
    assert plain == 8 * D**2 + 5 * D + C * (D + 1)
    assert whole == plain + 8 * D + D


def test_a_standardizing_head_ignores_the_feature_scale() -> None:
    f = torch.randn(40, 6) * 100 + 7
    model = MLPHead(6, 3, MLPHeadConfig(standardize=True), standardize=mean_and_std(f),
                    generator=torch.Generator().manual_seed(0)).eval()  # fmt: skip
    torch.testing.assert_close(model(f).features, (f - f.mean(0)) / f.std(0, correction=0), rtol=1e-4, atol=1e-4)


def test_dropout_is_seeded_and_for_training_only() -> None:
    model, f = head(MLPHeadConfig(dropout=0.25), width=64), torch.rand(200, 64) + 1
    model.seed_dropout(1)
    first, second = model.train()(f).features, model(f).features
    kept = first != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(first[kept], f[kept] / 0.75)
    assert not torch.equal(first, second)
    model.seed_dropout(1)
    assert torch.equal(model(f).features, first)
    assert torch.equal(model.eval()(f).features, f)


def test_a_saved_head_gives_the_same_logits(tmp_path: Path) -> None:
    model, f = head(MLPHeadConfig(layers=2, norm="batch")), torch.randn(9, 6)
    model.train()(f)
    net = Model(None, model.eval())
    assert save_model(tmp_path / "m", net, classes=["a", "b", "c"], class_values=[0, 1, 2]) == "head"
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(again(f).logits, net(f).logits)
    assert again.head.mlp == model.mlp  # type: ignore[union-attr]


def test_the_loss_is_the_sum_of_its_weighted_terms() -> None:
    model, f, y = head(), torch.randn(16, 6), torch.randint(3, (16,))
    method = NMTune(mse_weight=0.3, cov_weight=0.2, svd_weight=0.1)
    value = method.loss_fn(Bare())(model, batch((f,), y))  # type: ignore[arg-type]
    out = model(f)
    expected = (
        losses.cross_entropy(out.logits, y).mean()
        + 0.3 * losses.consistency(out.features, out.embedding)
        + 0.2 * losses.covariance(out.embedding)
        + 0.1 * losses.dominant_singular_value(out.embedding)
    )
    torch.testing.assert_close(value.total, expected)
    assert set(value.components) == {"ce", "consistency", "covariance", "dominance"}


def test_official_pairing_compares_the_two_views() -> None:
    model, one, two, y = head(), torch.randn(8, 6), torch.randn(8, 6), torch.randint(3, (8,))
    outputs = forward_views(model, (one, two))
    both = model(torch.cat([one, two]))
    torch.testing.assert_close(torch.cat([o.embedding for o in outputs]), both.embedding)
    across = NMTune.presets["official"]("").regularizers(outputs)  # type: ignore[attr-defined]
    torch.testing.assert_close(across["consistency"], losses.consistency(one, outputs[1].embedding, "element_mean"))
    torch.testing.assert_close(across["covariance"], losses.covariance(both.embedding))
    same = NMTune().regularizers(outputs)
    torch.testing.assert_close(same["consistency"], losses.consistency(both.features, both.embedding))
    assert len(forward_views(model, (one, one))) == 1, "cached features are one view"
    del y


def test_views_of_texts_pass_one_after_the_other() -> None:
    def net(x: dict[str, Tensor]) -> Output:
        return Output(x["a"], x["a"], x["a"])

    assert len(forward_views(net, ({"a": torch.ones(2, 3)}, {"a": torch.ones(2, 3)}))) == 2  # type: ignore[arg-type]


def test_two_views_train_on_cached_views() -> None:
    problem = blobs(0.0, size=96)
    run = loop_on(problem, "head")
    x = problem.x["train"]
    views = torch.stack([x, x + 0.1, x - 0.1])
    run.splits["train"] = SplitData(problem.y["train"], FeatureBatches(views), None)
    asked: list[int] = []
    method = quick("nmtune", "head", views=2, probe=SHORT)
    phase = method.phases()[0]
    assert phase.views == ("weak",)
    run.begin_phase(phase)

    def spying(net: Any, given: Batch) -> Any:
        asked.append(len(given.views))
        assert not torch.equal(given.views[0], given.views[1])  # type: ignore[arg-type]
        return method.loss_fn(run)(net, given)  # type: ignore[attr-defined]

    run.learn(run.net, spying, weak=2)
    assert set(asked) == {2}


@pytest.mark.parametrize("loss", ["gce", "elr"])
def test_a_robust_label_loss_beats_cross_entropy(loss: str) -> None:
    problem = blobs(0.6, size=800, spread=0.4)
    long = Stage(epochs=40, learning_rate=1e-2, batch_size=32)
    accuracy = {}
    for name in ("ce", loss):
        method = quick("nmtune", "head", loss=name, probe=long)
        _, rows = trained(problem, method, loop_on(problem, "head"))
        accuracy[name] = rows[-1]["accuracy_test"]
        assert f"loss_{name}" in rows[-1]
    assert accuracy[loss] > accuracy["ce"] + 0.01


@pytest.mark.parametrize("kind", ["mlp", "nmtune"])
def test_robust_with_an_mlp_head_resumes_bitwise(kind: str) -> None:
    problem = blobs(0.4, size=128)
    method = quick("robust", "all", head=kind, probe=SHORT, tune=replace(SHORT, epochs=2))
    memory = InMemory()
    whole, rows = trained(problem, method, loop_on(problem, "all"), memory)
    assert isinstance(whole.models[0].head, MLPHead)
    assert ("loss_covariance" in rows[0]) == (kind == "nmtune")
    assert isinstance(whole.candidates.heads("probe")[0], MLPHead)
    again = InMemory()
    again.saved = memory.saved[:4]
    resumed, _ = trained(problem, method, loop_on(problem, "all"), again)
    after = Checkpoint.capture(resumed).tensors
    for name, value in Checkpoint.capture(whole).tensors.items():
        assert torch.equal(value, after[name]), name


def test_a_probe_with_an_mlp_head_can_be_selected() -> None:
    problem = blobs(0.4, size=128)
    method = quick("robust", "all", head="nmtune", probe=SHORT, tune=replace(SHORT, epochs=1))
    body = backbone()
    run, _ = trained(problem, method, loop_on(problem, "all", body=body))
    run.load_candidate("probe", loop_on(problem, "all", body=body).models)
    assert isinstance(run.models[0].head, MLPHead)
    assert torch.isfinite(run.probabilities("test")).all()


@pytest.mark.parametrize("kind", ["mlp", "nmtune"])
def test_an_mlp_head_keeps_its_terms_after_selection(kind: str) -> None:
    problem = blobs(0.4, size=128)
    method = quick("robust", "head", head=kind, probe=SHORT, tune=replace(SHORT, epochs=2))
    _, rows = trained(problem, method, loop_on(problem, "head"))
    tuning = [row for row in rows if row["phase"] == "tune"]
    assert [("loss_consistency" in row, "loss_ce" in row) for row in tuning] == [(kind == "nmtune", True)] * 2


def test_robust_takes_the_stage_of_nmtune_for_an_mlp_head() -> None:
    rate = NMTune().probe.learning_rate
    probe, tune = Robust(scope="head", head="nmtune").phases()
    assert probe.stage == NMTune(loss="gce").phases()[0].stage
    assert (tune.stage.learning_rate, tune.stage.epochs) == (rate, Robust().tune.epochs)
    first, tuned, again = (Robust(head="mlp", tune=replace(Robust().tune, epochs=1))).phases()
    assert first.stage == probe.stage
    assert again.stage == replace(probe.stage, weight_decay=again.stage.weight_decay)
    assert tuned.stage.learning_rate == Robust().tune.learning_rate, "the backbone's schedule is no matter of the head"
    probe, tune = Robust(scope="head", head="nmtune", probe=SHORT, tune=SHORT).phases()
    assert (probe.stage, tune.stage) == (SHORT, SHORT)


def test_gce_has_its_own_default_learning_rate() -> None:
    """Beside the three terms its gradient, p_y^q of cross-entropy's, would be weak."""
    assert NMTune(loss="gce").phases()[0].stage == replace(NMTune().probe, learning_rate=3e-4)
    assert NMTune(loss="elr").phases()[0].stage == NMTune().probe
    assert NMTune(loss="gce", probe=SHORT).phases()[0].stage == SHORT


def test_scope_all_regularizes_backbone_features() -> None:
    problem = blobs(0.0, size=96)
    tune = replace(SHORT, epochs=1)
    method = quick("nmtune", "all", tune=tune, mlp=MLPHeadConfig())
    run, rows = trained(problem, method, loop_on(problem, "all"))
    assert not isinstance(run.models[0].head, MLPHead)
    assert {"loss_covariance", "loss_dominance"} <= set(rows[0])
    assert "loss_consistency" not in rows[0]
    f = torch.randn(9, 5)
    parts = method.regularizers([Output(torch.zeros(9, 2), 2 * f, f)])  # type: ignore[attr-defined]
    torch.testing.assert_close(parts["covariance"], losses.covariance(f))


def test_presets_have_the_published_settings() -> None:
    paper, code = (configure({"method": {"name": "nmtune", "preset": p}, "data": {"data": "x"}}, "resnet").method
                   for p in ("paper", "official"))  # fmt: skip
    weights = [(m.mse_weight, m.cov_weight, m.svd_weight) for m in (paper, code)]  # type: ignore[attr-defined]
    assert weights == [(0.01, 0.01, 0.01), (1.0, 0.04, 0.001)]
    assert (paper.mlp.norm, paper.mlp.residual) == ("none", False)  # type: ignore[attr-defined]
    assert (code.mlp.norm, code.mlp.residual, code.top_k, code.svd_reduction) == ("batch", True, 5, "mean")  # type: ignore[attr-defined]
    stage = paper.phases()[0].stage
    assert (stage.epochs, stage.learning_rate, stage.weight_decay, stage.schedule) == (30, 1e-3, 1e-4, "cosine")
    text = NMTune.presets["paper"]("bert").phases()[0].stage
    assert (text.epochs, text.schedule, lr_factor(text, 0.25)) == (10, "linear", 0.75)


def test_scope_head_does_not_change_the_backbone() -> None:
    problem, body = blobs(0.0, size=96), backbone()
    run, _ = trained(problem, quick("nmtune", "head", probe=SHORT), loop_on(problem, "all", body=body))
    assert run.models[0].backbone is not None
    after = run.models[0].backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in body.state_dict().items())


def test_mlp_is_nmtune_without_its_terms() -> None:
    (phase,) = MLP(loss="gce", q=0.5).phases()
    method = phase.epoch.__self__  # type: ignore[attr-defined]
    assert isinstance(method, NMTune)
    assert (method.loss, method.q, method.mse_weight, method.cov_weight) == ("gce", 0.5, 0.0, 0.0)


def test_a_dominating_covariance_term_gives_one_warning() -> None:
    problem = blobs(0.0, size=96)
    method = quick("nmtune", "head", probe=SHORT, cov_weight=100.0)
    _, rows = trained(problem, method, loop_on(problem, "head"))
    assert ["warnings" in row for row in rows] == [True, False, False]
    assert "lower method.cov_weight (100)" in rows[0]["warnings"][0]
    assert new_head is not None
