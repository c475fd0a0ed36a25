"""Test the paper's experiments: files, numbers, public layouts, and each block on synthetic data."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cleantune.backbones import open_backbone
from cleantune.config.data import DataConfig
from cleantune.data import load as load_data
from cleantune.errors import UserError
from cleantune.methods.paper_settings import TABLE_8
from cleantune.studies import synthetic
from cleantune.studies.grid import RECORD
from cleantune.studies.turn_paper import downloads
from cleantune.studies.turn_paper.cells import TURNWithoutSelection
from cleantune.studies.turn_paper.experiment import BLOCKS, experiment_from_dict, read, select
from cleantune.studies.turn_paper.numbers import KEYS, TABLES, notes, numbers, of_2500
from cleantune.studies.turn_paper.reproduce import reproduce
from cleantune.studies.turn_paper.sheets import WARNING

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "src" / "cleantune" / "studies" / "turn_paper" / "experiments"
RUNS = {"table2": 216, "table3": 90, "table4": 8, "table5": 18, "table9": 10, "figure2": 8, "figure3": 26}


# -- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_experiment_has_its_number_of_cells(block: str) -> None:
    made = read(block)
    assert made.block == block
    assert len(made.cells()) == RUNS[block]
    assert {m.architecture for m in made.models} <= set(TABLE_8)
    assert made.preset == "paper"


@pytest.mark.parametrize("block", BLOCKS)
def test_runs_paper_equals_the_packaged_experiments(block: str) -> None:
    shipped = (EXPERIMENTS / f"{block}.toml").read_text("utf-8")
    assert (ROOT / "runs" / "paper" / f"{block}.toml").read_text("utf-8") == shipped, (
        "after a change: cp src/cleantune/studies/turn_paper/experiments/*.toml runs/paper/"
    )


def changed(path: str, value: Any) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((EXPERIMENTS / "table4.toml").read_text("utf-8"))
    place: Any = table
    *way, last = path.split(".")
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("noise", [], 'unknown key "noise"; did you mean "noises"'),
        ("model.0.modle", "x", 'model.0..*unknown|unknown key "model.0..modle"'),
        ("data.0.loader", "cifar10", 'unknown loader "cifar10"; did you mean "cifar100"'),
        ("fit.run.model_selectio", "last", 'unknown key "run.model_selectio"; did you mean "(run.)?model_selection"'),
        ("variant.0.settings.tauu", 0.3, 'method.tauu"; did you mean "tau"'),
        ("variant.0.settings.tau", 3, "outside 0 to 1"),
        ("variant.0.method", "tern", 'unknown method "tern"; did you mean "turn"'),
        ("noises", ["symetric:0.9"], 'no noise "symetric"'),
        ("block", "table7", 'unknown block "table7"'),
        ("variant.0.name", "probe, no cleansing", "two cells are the same"),
    ],
)
def test_experiment_refuses_unknown_keys_and_values(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment_from_dict(changed(path, value))


def test_read_accepts_files_and_names_missing_ones(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text((EXPERIMENTS / "table9.toml").read_text("utf-8"), "utf-8")
    assert read(own).block == "table9"
    with pytest.raises(UserError, match='no block or file "tabel2"; did you mean "table2"'):
        read("tabel2")


def test_variant_settings_override_the_paper_preset() -> None:
    cells = {cell.variant: cell for cell in read("table4").cells() if cell.model == "ViT-B/16"}
    assert cells["no probe, cleansing before every epoch"].settings["method"]["probe"] == {"epochs": 0}
    assert cells["probe, cleansing once"].settings["method"]["tune"] == {"epochs": 1}
    assert not cells["probe, no cleansing"].select_samples
    assert all(cell.settings["method"]["preset"] == "paper" for cell in cells.values())


def test_select_keeps_cells_that_match_all_filters() -> None:
    cells = read("table9").cells()
    kept = select(cells, ["variant=tau 0.3", "variant=tau 0.9", "noise=symmetric:0.6"])
    assert [cell.variant for cell in kept] == ["tau 0.3", "tau 0.9"]
    with pytest.raises(UserError, match="no cell has it"):
        select(cells, ["variant=tau 0.4"])
    with pytest.raises(UserError, match='did you mean "noise"'):
        select(cells, ["nois=none"])


# -- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", TABLES)
def test_numbers_cover_every_cell_of_a_table(block: str) -> None:
    theirs = {tuple(row) for row in numbers(block)[list(KEYS)].to_numpy().tolist()}
    assert {cell.key for cell in read(block).cells()} == theirs
    assert len(numbers(block)) == len(theirs) == RUNS[block]


def test_numbers_are_percentages() -> None:
    for block in TABLES:
        assert numbers(block)[["best", "last"]].stack().dropna().between(0.9, 91).all(), block


def test_numbers_have_the_known_cells_with_last_above_best() -> None:
    above = {block: int((numbers(block)["last"] > numbers(block)["best"]).sum()) for block in TABLES}
    assert above["table2"] + above["table3"] == 9
    assert above["table9"] == 2
    assert sum(len(note.cells) for note in notes("table2") if "below last" in note.text) == above["table2"]


def test_numbers_rank_turn_first_in_23_of_24_columns() -> None:
    table = numbers("table2").pivot_table(index=["model", "noise"], columns=["method", "scope"], values="best")
    winners = table.idxmax(axis=1)
    assert (winners == ("turn", "all")).sum() == 23
    assert winners["MAE-ViT-B", "asymmetric:0.4"] == ("elr", "all")


def test_numbers_of_webvision_are_mostly_fractions_of_2500() -> None:
    web = numbers("table3").query("data == 'mini-WebVision'")
    assert len(web) * 2 == 90
    assert of_2500(web["best"]).sum() + of_2500(web["last"]).sum() == 86
    assert of_2500(np.array([84.62, 84.64])).tolist() == [False, True]


def test_numbers_of_table_4_agree_with_table_2() -> None:
    last = numbers("table2").query("method == 'turn' and noise == 'symmetric:0.9'").set_index("model")["last"]
    full = numbers("table4").query("variant == 'probe, cleansing before every epoch'").set_index("model")["last"]
    assert full.to_dict() == {model: last[model] for model in full.index}


def test_numbers_of_table_9_are_class_multiples() -> None:
    assert (numbers("table9")["samples"] % 100 == 0).all()


def test_numbers_correct_and_note_a_misprint_in_table_5() -> None:
    row = numbers("table5").query("model == 'ViT-L/16' and method == 'elr' and scope == 'all'").iloc[0]
    assert (row["best"], row["last"]) == (80.22, 49.78)
    [note] = [note for note in notes("table5") if "8022" in note.text]
    assert note.cells == {tuple(row[list(KEYS)])}


@pytest.mark.parametrize("block", BLOCKS)
def test_notes_have_distinct_marks(block: str) -> None:
    marks = [note.mark for note in notes(block) if note.mark]
    assert notes(block)
    assert len(marks) == len(set(marks))


# -- the public layouts ----------------------------------------------------------------------------------------------


def spec(table: dict[str, Any]) -> DataConfig:
    return DataConfig(**table)


@pytest.mark.parametrize(("loader", "sizes"), [
    ("cifar100", {"train": 144, "validation": 16, "test": 40}),
    ("clothing1m", {"train": 140, "validation": 20, "test": 40}),
    ("webvision", {"train": 144, "validation": 16, "test": 40}),
])  # fmt: skip
def test_downloads_read_each_layout(tmp_path: Path, loader: str, sizes: dict[str, int]) -> None:
    synthetic.DOWNLOADS[loader](tmp_path / "download")
    table = downloads.load(loader, str(tmp_path / "download"), tmp_path / "tables", 0)
    data = load_data(spec(table))
    assert {split: len(rows) for split, rows in data.rows.items()} == sizes
    assert len(data.classes) == 5
    picture = data.rows["test"].samples.read([3])[0]
    pixels, y = synthetic.images()
    assert np.abs(pixels.astype(int) - np.asarray(picture)).mean((1, 2, 3)).argmin() == 163
    names = {"cifar100": [f"disc_{c}" for c in range(5)], "clothing1m": downloads.CLOTHES[:5], "webvision": "01234"}
    assert data.classes[data.rows["test"].y[3]] == names[loader][y[163]]


def test_cifar100_classes_keep_their_order(tmp_path: Path) -> None:
    synthetic.cifar100(tmp_path / "a")
    (tmp_path / "a" / "fine_label_names.txt").write_text("zebra\nyak\nxerus\nwolf\nvole\n")
    data = load_data(spec(downloads.load("cifar100", str(tmp_path / "a"), tmp_path / "t", 0)))
    assert data.classes == ("zebra", "yak", "xerus", "wolf", "vole")


def test_clothing1m_subset_is_fixed_and_balanced(tmp_path: Path) -> None:
    synthetic.clothing1m(tmp_path / "a")
    chosen = []
    for k in range(2):
        table = downloads.load("clothing1m", str(tmp_path / "a"), tmp_path / f"t{k}", 50)
        chosen.append(pd.read_parquet(table["data"]))
    assert chosen[0].equals(chosen[1])
    assert chosen[0]["label"].value_counts().tolist() == [10] * 5


def test_draw_balanced_takes_all_of_a_small_class() -> None:
    rows = [downloads.ListedImage(str(i), int(i >= 30)) for i in range(34)]
    drawn = downloads.draw_balanced(rows, 20)
    assert [row.label for row in drawn] == [0] * 16 + [1] * 4


def cut(name: str, text: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(text(path.read_text()))

    return change


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-5])


def mislabel(folder: Path) -> None:
    raw = bytearray((folder / "test.bin").read_bytes())
    raw[2 * downloads.RECORD + 1] = 77
    (folder / "test.bin").write_bytes(bytes(raw))


def pickles(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "meta").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(("loader", "breaks", "message"), [
    ("cifar100", truncate, r"train.bin has 491835 bytes, not a multiple of 3074"),
    ("cifar100", mislabel, r"test.bin: record 2 \(from 0\) has the fine label 77, but fine_label_names.txt names 5"),
    ("cifar100", drop("test.bin"), r"test.bin is missing"),
    ("cifar100", drop("fine_label_names.txt"), r"fine_label_names.txt is missing"),
    ("cifar100", pickles, r"pickles, which can run code when opened; take the binary version"),
    ("clothing1m", drop("clean_label_kv.txt"), r"clean_label_kv.txt is missing; it belongs to Clothing1M"),
    ("clothing1m", cut("noisy_label_kv.txt", lambda t: t.replace(" ", "\t", 1)), r"noisy_label_kv.txt: line 1 is"),
    ("clothing1m", cut("noisy_label_kv.txt", lambda t: t + "x.jpg 14\n"), r"line 141 has the label 14, outside"),
    ("clothing1m", cut("clean_val_key_list.txt", lambda t: "no.jpg\n" + t), r"clean_val_key_list.txt: line 1 names"),
    ("clothing1m", cut("clean_test_key_list.txt", lambda t: "\n"), r"clean_test_key_list.txt is empty"),
    ("clothing1m", drop("images/0/0000.jpg"), r"0000.jpg, the first image of a list, is missing"),
    ("webvision", drop("info/val_filelist.txt"), r"val_filelist.txt is missing; it belongs to WebVision 1.0"),
    ("webvision", cut("info/train_filelist_google.txt", lambda t: t + "google/a.jpg x\n"), r"line 162 is "),
    ("webvision", cut("info/val_filelist.txt", lambda t: "a.jpg 700\n"), r"lists no image of the first 50 classes"),
])  # fmt: skip
def test_downloads_refuse_malformed_files_by_line(
    tmp_path: Path, loader: str, breaks: Callable[[Path], None], message: str
) -> None:
    synthetic.DOWNLOADS[loader](tmp_path / "download")
    breaks(tmp_path / "download")
    with pytest.raises(UserError, match=message):
        downloads.load(loader, str(tmp_path / "download"), tmp_path / "tables", 0)


def test_webvision_omits_classes_from_50_on(tmp_path: Path) -> None:
    synthetic.webvision(tmp_path / "a")
    table = downloads.load("webvision", str(tmp_path / "a"), tmp_path / "t", 0)
    assert pd.read_parquet(table["data"])["label"].max() == 4


# -- synthetic data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", synthetic.NETWORKS)
def test_image_network_opens_and_is_deterministic(tmp_path: Path, architecture: str) -> None:
    import torch

    backbone = open_backbone(synthetic.image_network(architecture, tmp_path / architecture))
    x = torch.rand(2, 3, 32, 32)
    assert backbone.architecture.model_type == architecture
    assert torch.equal(backbone(x), backbone(x))


def test_turn_without_selection_trains_on_all_samples() -> None:
    method = TURNWithoutSelection()
    plans: list[Any] = []

    class Recorder:
        net = None

        def learn(self, net: Any, loss: Any, plan: Any = None) -> None:
            plans.append(plan)

    method.tune_epoch(Recorder())  # type: ignore[arg-type]
    assert plans == [None]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Use one thread: more of them slow tiny networks down."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CHEAPEST = {
    "table2": ["model=ViT-B/16", "noise=symmetric:0.6", "scope=head"],
    "table3": ["model=ResNet-50", "method=turn"],
    "table4": ["model=ViT-B/16"],
    "table5": ["model=ViT-L/16", "method=gce", "method=elr", "scope=all"],
    "table9": ["noise=symmetric:0.6", "variant=tau 0.3", "variant=tau 0.6"],
    "figure2": ["model=ConvNeXt-T"],
    "figure3": ["method=ce", "method=turn", "variant=", "variant=tau 0.3", "variant=tau 0.6"],
}


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("block", BLOCKS)
def test_reproduce_runs_each_block_on_synthetic_data(tmp_path: Path, block: str) -> None:
    done = reproduce(block, out=tmp_path / "out", synthetic=True, only=CHEAPEST[block], quiet=True)
    table = pd.read_parquet(done.path / "reproduce.parquet")
    assert (table["status"] == "done").all(), table[["method", "scope", "reason"]].to_string()
    assert table["synthetic"].all()
    assert table["accuracy_last"].between(0, 1).all()
    assert table["forward_passes"].notna().all()
    for text in (done.text, *((done.path / f"reproduce.{end}").read_text("utf-8") for end in ("md", "html"))):
        assert WARNING in text
    if block in TABLES:
        paper = table["paper_last"].dropna()
        assert len(paper) == len(table)
        assert f"{paper.iloc[0]:.2f}" in done.text
    page = (done.path / "reproduce.html").read_text("utf-8")
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    if block == "figure2":
        assert {"cka", "neighbors", "silhouette", "probe"} <= set(table)
        assert page.count('class="plot"') == 3


# -- refusals and resumption ------------------------------------------------------------------------------------------


def test_reproduce_names_the_source_of_missing_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder .*Clothing1M: .*on request.*--data clothing1m=PATH"):
        reproduce("table3", out=tmp_path / "out", only=["data=Clothing1M"], quiet=True,
                  data={"clothing1m": str(tmp_path / "nowhere")})  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_reproduce_refuses_data_with_synthetic(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --data and --model out"):
        reproduce("table4", out=tmp_path / "out", synthetic=True, data={"cifar100": "x"})


def test_reproduce_names_a_missing_model(tmp_path: Path) -> None:
    synthetic.cifar100(tmp_path / "cifar")
    with pytest.raises(UserError, match=r'no such model.*for ViT-B/16; --model "ViT-B/16=FOLDER"'):
        reproduce("table9", out=tmp_path / "out", quiet=True, data={"cifar100": str(tmp_path / "cifar")},
                  models={"ViT-B/16": str(tmp_path / "none")})  # fmt: skip


@pytest.mark.usefixtures("_one_thread")
def test_reproduce_resumes_with_own_data_and_models(tmp_path: Path) -> None:
    synthetic.cifar100(tmp_path / "cifar")
    model = synthetic.image_network("resnet", tmp_path / "resnet")
    arguments: dict[str, Any] = {
        "out": tmp_path / "out", "data": {"cifar100": str(tmp_path / "cifar")}, "models": {"ViT-B/16": str(model)},
        "only": ["model=ViT-B/16", "variant=probe, no cleansing"], "quiet": True,
    }  # fmt: skip
    first = reproduce("table4", **arguments)
    assert not first.table["synthetic"].any()
    assert WARNING not in first.text
    [cell] = (tmp_path / "out" / "cells").glob(f"*/{RECORD}")
    cell.write_text(
        cell.read_text().replace(
            f'"forward_passes": {int(first.table["forward_passes"].iloc[0])}', '"forward_passes": 1'
        )
    )
    assert reproduce("table4", resume=True, **arguments).table["forward_passes"].tolist() == [1]
    with pytest.raises(UserError, match=r"--resume: seeds is \[0, 1\] now and was \[0\]"):
        reproduce("table4", resume=True, seeds=2, **arguments)
    with pytest.raises(UserError, match="is not empty"):
        reproduce("table4", **arguments)


@pytest.mark.usefixtures("_one_thread")
def test_reproduce_shows_a_failed_cell_and_runs_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cleantune.studies.turn_paper import reproduce as module

    analyze, fails = module.analyze_features, iter((True, False))

    def fragile(run: Any) -> dict[str, Any]:
        if next(fails):
            raise RuntimeError("no memory left")
        return analyze(run)

    monkeypatch.setattr(module, "analyze_features", fragile)
    done = reproduce("figure2", out=tmp_path / "out", synthetic=True, only=["model=ConvNeXt-T"], quiet=True)
    assert done.table["status"].tolist() == ["failed", "done"]
    for end in ("md", "html"):
        assert "RuntimeError: no memory left" in (done.path / f"reproduce.{end}").read_text("utf-8")
    assert "failed" in done.text


def test_package_data_include_every_reproduction_file() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    package = ROOT / "src" / "cleantune"
    shipped = {path for pattern in listed["cleantune"] for path in package.glob(pattern)}
    files = (package / "studies" / "turn_paper").rglob("*")
    needed = {path for path in files if path.suffix in (".toml", ".csv", ".html")}
    assert needed <= shipped
    assert len(needed) == 7 + 5 + 1 + 1
