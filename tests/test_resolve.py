"""Arguments and their resolution to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import color_table, embeddings
from tiny import save_tiny

from cleantune.errors import UserError
from cleantune.pipeline.arguments import FitArguments, merge_arguments, option_paths
from cleantune.pipeline.resolve import configure_arguments, configure_table, model_type, resolve
from cleantune.utils.console import Console

QUIET = Console(quiet=True)


def test_later_arguments_override_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[method]\nname = "gce"\nq = 0.5\n[run]\nviews = 1\n')
    arguments = FitArguments(
        data="a.csv", method="ce", config=tmp_path / "c.toml", settings=["method.q=0.2"], options={"text": "body"}
    )
    assert arguments.to_table() == {
        "method": {"name": "ce", "q": 0.2}, "run": {"views": 1}, "data": {"data": "a.csv", "text": "body"},
    }  # fmt: skip


def test_seed_sets_all_three_seeds_and_options_override_it() -> None:
    table = FitArguments(seed=3, options={"noise_seed": 5}).to_table()
    assert table == {"data": {"split_seed": 3}, "run": {"noise_seed": 5, "train_seed": 3}}


def test_scope_lora_is_scope_all_with_adapters() -> None:
    assert FitArguments(scope="lora").to_table() == {"model": {"lora_rank": 8}, "method": {"scope": "all"}}
    table = FitArguments(scope="lora", config={"model": {"lora_rank": 2}}).to_table()
    assert table["model"]["lora_rank"] == 2


def test_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match='unknown option "lable"; did you mean "label"'):
        option_paths({"lable": "x"})


def test_settings_can_be_relocated() -> None:
    merged = merge_arguments({}, {}, {"gce.q": 0.3}, lambda keys: ["settings", *keys])
    assert merged == {"settings": {"gce": {"q": 0.3}}}


def test_arguments_without_data_are_refused() -> None:
    with pytest.raises(UserError, match="there are no data"):
        configure_arguments(FitArguments(method="ce"))


def test_run_without_a_model_is_on_features() -> None:
    run = resolve(configure_table({"data": {"data": embeddings(40)}, "method": {"name": "ce"}}), QUIET)
    assert run.backbone is None
    assert run.config.method.scope == "head"
    assert not run.trains_backbone


def test_images_without_a_model_are_refused(tmp_path: Path) -> None:
    config = configure_arguments(FitArguments(data=color_table(tmp_path, 30), method="ce"))
    with pytest.raises(UserError, match="--model is missing"):
        resolve(config, QUIET)


def test_features_with_a_model_are_refused(tmp_path: Path) -> None:
    config = configure_arguments(FitArguments(data=embeddings(40), model=str(tmp_path), method="ce"))
    with pytest.raises(UserError, match="features already; leave the model out"):
        resolve(config, QUIET)


def test_presets_take_the_architecture_from_the_model(tmp_path: Path) -> None:
    seen: list[Any] = [model_type(save_tiny("vit", tmp_path / "vit")), model_type(tmp_path / "missing")]
    assert seen == ["vit", None]


def test_resolved_run_has_noise_backbone_and_rates(tmp_path: Path) -> None:
    model = save_tiny("resnet", tmp_path / "model")
    options = {"noise": "symmetric:0.4", "true_label": "true"}
    arguments = FitArguments(data=color_table(tmp_path, 90), model=model, method="ce", scope="all", options=options)
    run = resolve(configure_arguments(arguments), QUIET)
    assert run.noise is not None
    assert run.noise["rate"] > 0
    assert run.backbone is not None
    assert run.trains_backbone
    assert run.phases[-1].stage.backbone_learning_rate > 0


@pytest.mark.parametrize(
    ("rule", "fraction", "message"),
    [
        ("noisy-val", 0.0, "no validation split"),
        ("clean-val", 0.0, "no validation split"),
        ("clean-val", 0.2, "no true label of the validation split"),
    ],
)
def test_model_selection_without_labels_is_refused(rule: str, fraction: float, message: str) -> None:
    table = {
        "data": {"data": embeddings(), "validation_fraction": fraction},
        "method": {"name": "ce"},
        "run": {"model_selection": rule},
    }
    with pytest.raises(UserError, match=message):
        resolve(configure_table(table), QUIET)
