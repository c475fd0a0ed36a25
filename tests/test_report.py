"""The report of a run: content, robustness, and independence of everything but the run folder."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import CLASSES, change_summary, make_run

from cleantune.errors import UserError
from cleantune.report import build_report, figures, svg, tables, wording
from cleantune.storage.readers import class_name, finite
from cleantune.storage.run_dir import RunDir

VOID = {"meta", "br", "img", "link", "input", "hr"}
OPEN_ENDED = {"tr", "td"}  # HTML lets these end by themselves
HOSTILE = (
    "<script>alert(1)</script>",
    "a & b \"c\" 'd'",
    "$x_1^{$ \u8a9e",
    "</svg></style><img src=x onerror=alert(1)>",
    "]]>--><b>\x07{{ 7 * 7 }}",
)
NAMES = CLASSES[:3]
SIXTY = tuple(f"intent {i:02}" for i in range(60))


class Page(HTMLParser):
    """Elements of a page with attributes and text; checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({key for key, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID | OPEN_ENDED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in OPEN_ENDED:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data + " "

    @property
    def words(self) -> str:
        """Return the text with white space collapsed; narrow no-break spaces stay."""
        return re.sub(r"[ \t\r\n]+", " ", self.text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def render_page(run: Path) -> Page:
    return Page(build_report(run).read_text("utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "x", names=NAMES)


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return render_page(made)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Iterator[Path]:
    return shutil.copytree(made, tmp_path / "x")


# The page as a document.


def test_page_elements_nest_and_ids_are_unique(page: Page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_references_have_targets(page: Page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = [value for _, a in page.elements for key, value in a.items() if key in ("href", "aria-labelledby")]
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(str(v) for _, a in page.elements for v in a.values()))
    assert {link.removeprefix("#") for link in links if link} | set(clips) <= ids


def test_page_loads_nothing_and_runs_no_script(page: Page):
    assert not page.all("script")
    assert not page.all("link")
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"http|@import|url\(", page.style)
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_page_describes_pictures_plots_and_tables(page: Page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(plot.get("role") == "img" and plot.get("aria-label") for plot in page.all("svg"))
    assert all(header.get("scope") for header in page.all("th"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg"))


def test_page_plots_have_axis_labels(page: Page):
    rates = ("probability of a label error", "noise rate (% of the class's given labels)")
    for axis in (*rates, "accuracy (%)", "epoch, over all phases"):
        assert axis in page.words


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colors (WCAG 2)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_page_text_has_contrast_in_light_dark_and_print(page: Page):
    palettes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", page.style, re.S)
    ]
    assert len(palettes) == 3
    for colors in palettes:
        for name in ("ink", "muted", "first", "second", "third", "wrong", "right", "warn"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, (name, colors)


def test_figures_use_colors_of_the_page(page: Page):
    styles = " ".join(a.get("style") or "" for name, a in page.elements if name in ("path", "text", "use", "g"))
    assert not re.findall(r"#\w{6}", styles)
    assert "DejaVu" not in styles


def test_build_report_gives_equal_bytes_for_equal_folders(made: Path, tmp_path: Path):
    first = build_report(shutil.copytree(made, tmp_path / "a" / "x")).read_bytes()
    assert build_report(shutil.copytree(made, tmp_path / "b" / "x")).read_bytes() == first


def test_page_is_small_with_many_classes_and_issues(tmp_path: Path):
    run = make_run(tmp_path / "x", names=SIXTY, size=12_000)
    path = build_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 2_000_000
    page = Page(path.read_text("utf-8"))
    assert "The 30 noisiest of 60 classes are shown." in page.words
    assert "60 classes are too many for a matrix" in page.words
    assert "worst 2,000 of" in page.words


def test_gallery_leaves_out_pictures_beyond_the_limit(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "MAX_PICTURE_BYTES", 10_000)
    page = render_page(copy)
    left = 60 - len(page.all("img"))
    assert 0 < left < 60
    assert f"{left} pictures are left out" in page.words


# Untrusted text.


def test_markup_in_names_ids_and_texts_stays_text(tmp_path: Path):
    run = make_run(tmp_path / "x", names=HOSTILE, kind="text", text="<b onclick=x>{}</b></blockquote><script>")
    hostile = "<img src=x onerror=alert(1)></title>"
    change_summary(
        run, notes=[hostile], warnings=[hostile], method=hostile, command=hostile, versions={hostile: hostile}
    )
    (run / "artifacts" / "unreadable_samples.csv").write_text(f"id,place,reason\n{hostile},{hostile},{hostile}\n")
    labels = pd.read_parquet(run / "labels.parquet")
    labels.assign(id=hostile + labels["id"]).to_parquet(run / "labels.parquet")
    gallery = json.loads((run / "artifacts" / "gallery.json").read_text())
    for entry in gallery:
        entry["id"] = hostile
        entry["thumbnail"] = 'data:image/jpeg;base64,AA==" onerror="alert(1)'
    (run / "artifacts" / "gallery.json").write_text(json.dumps(gallery))
    page = render_page(run)
    assert page.open == []
    assert {tag for tag, _ in page.elements} & {"script", "b", "img"} <= {"b"}
    assert not [a for tag, a in page.elements if tag == "b" and a]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.words
    assert "$x_1^{$ \u8a9e" in page.words
    assert "{{ 7 * 7 }}" in page.words
    assert "\x07" not in page.text
    assert hostile in page.words


@pytest.mark.parametrize(("low", "high", "labels"), [
    (0.4, 2.5, {"0.5", "1", "2"}), (0.001, 0.6, {"0.001", "0.003", "0.01", "0.03", "0.1", "0.3"}),
])  # fmt: skip
def test_label_log_axis_uses_plain_numbers(low: float, high: float, labels: set[str]):
    with svg.canvas(300, 200) as figure:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        axes.set_xticks([])
        axes.plot([0, 1], [low, high])
        svg.label_log_axis(axes.yaxis, low, high)
        drawn = svg.inline(figure, "logs", "a line")
    assert set(re.findall(r"<text[^>]*>([^<]*)</text>", drawn)) == labels


@settings(max_examples=5)
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=4, unique=True))
def test_svg_accepts_any_class_name(names: list[str]):
    classes = [figures.ClassNoise(name, 0.1 * i, None, 5) for i, name in enumerate(names)]
    drawn = figures.noise_by_class(classes, 0.2, names[0])
    parsed = Page(drawn)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.elements} <= {
        "svg",
        "g",
        "path",
        "text",
        "use",
        "defs",
        "clippath",
        "rect",
        "tspan",
    }


def test_confusion_matches_numeric_labels_with_classes(tmp_path: Path):
    run = make_run(tmp_path / "x", names=("0", "1", "2"))
    table = pd.read_parquet(run / "labels.parquet")
    columns = ["given_label", "suggested_label", "true_label"]
    table[columns] = table[columns].astype(float)
    table.to_parquet(run / "labels.parquet")
    found = RunDir.read(run)
    assert tables.confusion(found).sum() == len(found.labels)
    assert [class_name(v) for v in (3, 3.0, np.int64(3), "3", True, 2.5)] == ["3", "3", "3", "3", "True", "2.5"]


# Missing and broken files.


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "labels.parquet"])
def test_build_report_names_a_missing_file_and_the_remedy(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)} is missing.*--resume"):
        build_report(copy)


FILLED = ("summary.json", "labels.parquet", "artifacts/gallery.json")
BROKEN = [(name, b"{[\xff\x00") for name in (*FILLED, "config.toml", "metrics.jsonl")] + [
    (name, b"") for name in FILLED
]


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_build_report_names_a_broken_file_in_one_sentence(copy: Path, name: str, content: bytes):
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        build_report(copy)
    assert "\n" not in str(caught.value)


def test_build_report_refuses_other_folders_and_summaries(copy: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no run folder"):
        build_report(tmp_path / "nowhere")
    change_summary(copy, samples={})
    with pytest.raises(UserError, match=r"lacks samples\.train"):
        build_report(copy)


def test_build_report_keeps_the_earlier_page_on_failure(copy: Path):
    before = b"an earlier report"
    (copy / "report.html").write_bytes(before)
    (copy / "summary.json").write_text("{")
    with pytest.raises(UserError):
        build_report(copy)
    assert (copy / "report.html").read_bytes() == before
    assert not list(copy.glob(".report*"))


def test_page_states_a_missing_gallery(copy: Path, page: Page):
    (copy / "artifacts" / "gallery.json").unlink()
    assert "The run has no gallery" in render_page(copy).words
    assert "The run has no gallery" not in page.words


def test_build_report_needs_only_a_minimal_summary(copy: Path):
    shutil.rmtree(copy / "artifacts")
    (copy / "summary.json").write_text(
        json.dumps({"method": "ce", "class_names": list(NAMES), "samples": {"train": 360}, "accuracy": None})
    )
    (copy / "metrics.jsonl").write_text("")
    (copy / "config.toml").write_text("")
    page = render_page(copy)
    assert "CE finished, but there is neither a test nor a validation split" in page.words
    assert "The run has no measured epochs" in page.words


def test_page_lists_unreadable_samples(copy: Path):
    (copy / "artifacts" / "unreadable_samples.csv").write_text(
        "id,place,reason\ncat/1.jpg,photos/cat/1.jpg,truncated\n"
    )
    page = render_page(copy)
    assert "1 sample could not be read" in page.words
    assert "photos/cat/1.jpg truncated" in page.words


@pytest.mark.parametrize("kind", ["text", "features"])
def test_gallery_shows_texts_and_features(tmp_path: Path, kind: str):
    page = render_page(make_run(tmp_path / "x", names=NAMES, kind=kind, truth=False))
    assert not page.all("img")
    assert len(page.all("blockquote")) == (60 if kind == "text" else 0)
    assert page.words.count("(0 wrong, 1 correct)") == 1
    assert "True labels are known" not in page.words


# Content.


def test_conclusions_compare_with_the_linear_probe(page: Page):
    assert "Robust reaches 66.2\u202f% on the test split, 19.3 ± 0.7 points above a CE linear probe" in page.words
    assert "The folder model/ has the fine-tuned model." in page.words
    headings = ("Method", "Noise rate", "Label errors", "Label confusion", "Next steps", "Cost")
    assert all(heading in page.words for heading in (*headings, "Data table", "Training curves"))


def test_conclusions_state_a_fallback_to_the_probe(tmp_path: Path):
    run = RunDir.read(make_run(tmp_path / "x", harm=True, selected_model="probe"))
    first, second = wording.conclusions(run)
    assert first.startswith("Robust reaches 52.1")
    assert second.startswith(
        "Fallback: model/ has the probe on frozen features, not the fine-tuned model"
    )
    assert "42.0" in second


def test_conclusions_name_the_best_epoch(copy: Path):
    change_summary(copy, selected_model="best", selection_reason="it was best on the validation split")
    said = wording.conclusions(RunDir.read(copy))[1]
    assert said == (
        "The folder model/ has the model of the best epoch on validation. It was best on the validation split."
    )


def test_page_states_that_there_are_no_issues(copy: Path):
    labels = pd.read_parquet(copy / "labels.parquet")
    labels.assign(is_label_issue=False).to_parquet(copy / "labels.parquet")
    (copy / "artifacts" / "gallery.json").write_text("[]")
    said = render_page(copy).words
    assert "The run found no label issues." in said
    assert "has no gallery" not in said


def test_page_names_injected_noise(copy: Path):
    noise = {"estimated_rate": None, "injected": {"noise": "symmetric:0.6", "seed": 3, "rate": 0.6}}
    change_summary(copy, noise=noise, command=None)
    said = render_page(copy).words
    assert "symmetric:0.6, seed 3" in said
    assert "The run estimated no noise rate." in said
    assert "cleantune fit --config x/config.toml --out x --resume" in said


def test_conclusions_qualify_validation_accuracy(tmp_path: Path):
    run = RunDir.read(make_run(tmp_path / "x", test=False, truth=False))
    said = wording.conclusions(run)[0]
    assert said.startswith("There is no labeled test split. Robust reaches 44.0")
    assert "Validation labels are given labels" in said
    assert wording.tiles(run)[0].name == "validation accuracy"


@pytest.mark.parametrize(
    ("ours", "said"), [(0.475, "no clear difference"), (0.60, "points above"), (0.30, "The linear probe is better")]
)
def test_conclusions_follow_the_standard_error(copy: Path, ours: float, said: str):
    accuracy = {"test": ours, "by_phase": {"tune": {"test": ours}}}
    change_summary(copy, accuracy=accuracy, selected_model="tune", selection_reason=None)
    run = RunDir.read(copy)
    assert said in wording.conclusions(run)[0]
    gain = wording.gain(run, "test")
    assert gain is not None
    assert gain.standard_error == pytest.approx(math.hypot(*(math.sqrt(p * (1 - p) / 10_000) for p in (ours, 0.469))))


def test_page_lists_every_issue_once(made: Path, page: Page):
    labels = pd.read_parquet(made / "labels.parquet")
    start = page.words.index("label issues", page.words.index("(0 wrong, 1 correct)"))
    listed = page.words[start : page.words.rindex("Next steps")]
    for name in labels.loc[labels["is_label_issue"], "id"]:
        assert listed.count(f"{name} ") == 1


def test_commands_quote_the_folder(made: Path, tmp_path: Path):
    run = shutil.copytree(made, tmp_path / "my run's")
    said = render_page(run).words
    assert """cleantune predict 'my run'"'"'s' DATA""" in said
    assert """cleantune.load("my run's")""" in said
    assert "--out runs/x --resume" in said
    assert str(tmp_path) not in said


# Arithmetic.


def test_confusion_and_pairs_equal_a_manual_count(made: Path):
    run = RunDir.read(made)
    by_hand = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    for given_label, suggested in zip(run.labels["given_label"], run.labels["suggested_label"], strict=True):
        by_hand[NAMES.index(given_label), NAMES.index(suggested)] += 1
    counts = tables.confusion(run)
    assert (counts == by_hand).all()
    for pair in tables.top_pairs(list(NAMES), counts):
        row = by_hand[NAMES.index(pair.given)]
        assert pair.samples == row[NAMES.index(pair.suggested)]
        assert pair.share == pytest.approx(pair.samples / row.sum())
    shades = [cell.shade for row in tables.heatmap(counts) for cell in row if not cell.agrees]
    assert max(shades) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 0.2))
def test_spread_keeps_order_gap_and_mean(heights: list[float], gap: float):
    moved = figures.spread(heights, gap)
    ranked = [moved[i] for i in sorted(range(len(heights)), key=lambda i: heights[i])]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(ranked))
    assert sum(moved) == pytest.approx(sum(heights))
    if all(abs(a - b) >= gap for i, a in enumerate(heights) for b in heights[:i]):
        assert moved == pytest.approx(heights)


def test_measured_phases_start_at_the_first_measurement():
    phases = ["probe"] * 3 + ["tune"] * 3 + ["end"]
    assert figures.measured_phases([[None] * 4 + [1.0, None, None]], phases) == (3, 6)
    assert figures.measured_phases([[1.0] * 7], phases) == (0, 7)


@pytest.mark.parametrize("truth", [True, False])
def test_page_shows_error_probabilities_with_threshold(tmp_path: Path, truth: bool):
    run = make_run(tmp_path / "x", names=NAMES, truth=truth)
    labels, page = pd.read_parquet(run / "labels.parquet"), render_page(run)
    described = f"error probability of {len(labels)} labels; {labels['is_label_issue'].sum()} are label issues"
    assert [plot for plot in page.all("svg") if described in (plot["aria-label"] or "")]
    assert "Labels that reach the threshold 0.60 (dashed) are label issues" in page.words
    assert ("correct label" in page.words) is truth
    change_summary(run, issues={"count": 3, "threshold": 0.75})
    assert "threshold 0.75" in render_page(run).words


def test_histogram_draws_the_threshold_at_its_place():
    values = np.linspace(0, 1, 200)
    drawn = [figures.probability_histogram(values, None, threshold, "p", "p") for threshold in (0.25, 0.75, None)]
    lines = [re.findall(r'd="M ([\d.]+) [\d.]+\s+L \1 [^>]*stroke-dasharray', plot) for plot in drawn]
    assert [len(found) for found in lines] == [1, 1, 0]
    assert float(lines[1][0]) - float(lines[0][0]) > 100


def test_page_and_summary_agree_on_the_noise_rate(page: Page):
    estimate = "41.2\u202f% of the labels of training and validation are wrong (range 38.0\u202f% to 45.0\u202f%)"
    assert f"An estimated {estimate}. By the true labels, 40.2\u202f% are wrong." in page.words
    assert "estimated noise rate 41.2\u202f% 38.0\u202f% to 45.0\u202f%; true rate 40.2\u202f%" in page.words


def test_page_states_that_errors_are_not_identifiable(copy: Path):
    labels = pd.read_parquet(copy / "labels.parquet")
    labels.assign(is_label_issue=False).to_parquet(copy / "labels.parquet")
    noise = {"estimated_rate": None, "estimated_range": None, "identifiable": False, "reason": "probes disagree"}
    change_summary(copy, noise=noise, issues={"count": 0, "threshold": None})
    said = render_page(copy).words
    assert "The number of wrong labels cannot be identified: probes disagree. No label is an issue" in said
    assert "estimated noise rate cannot tell" in said
    assert "There is no threshold" in said
    assert "The run found no label issues." in said


def test_finite_is_none_for_anything_but_a_number():
    assert [finite(v) for v in (1, True, math.nan, "1", None)] == [1.0, None, None, None, None]


def test_sentence_has_a_capital_and_a_period():
    assert wording.sentence("a class is small") == "A class is small."
    assert [wording.sentence(text) for text in (None, "", "Done!")] == ["", "", "Done!"]


def test_display_method_keeps_unknown_names():
    assert [wording.display_method(name) for name in ("turn", "my_method")] == ["TURN", "my_method"]


def test_confusion_ignores_missing_labels(tmp_path: Path):
    run = make_run(tmp_path / "x", names=NAMES)
    labels = pd.read_parquet(run / "labels.parquet")
    labels.loc[labels.index[:2], ["suggested_label", "true_label"]] = None
    labels.to_parquet(run / "labels.parquet")
    found = RunDir.read(run)
    assert list(found.labels["true_label"].head(2)) == [None, None]
    assert tables.confusion(found).sum() == len(labels) - 2
    assert tables.issues(found)[0].truth is None


@given(st.floats(1, 1e7))
def test_root_ticks_have_one_digit_and_do_not_overlap(top: float) -> None:
    ticks = figures.root_ticks(top)
    assert ticks[0] == 0
    assert all(float(f"{tick:.0e}") == tick <= top for tick in ticks)
    heights = [math.sqrt(tick / top) for tick in ticks]
    assert all(b - a >= 0.1 for a, b in pairwise(heights))
    assert heights[-1] > 0.7
