"""Label noise: rates, equality with loops, text form, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleantune.errors import UserError
from cleantune.noise import (
    CIFAR10_MAP,
    CIFAR100_SUPERCLASS,
    Noise,
    flip_labels,
    format_noise,
    measure_noise,
    parse_noise,
    swap_pairs,
    transition_matrix,
    truncated_normal,
)

N = 47_500


def labels(classes: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(7).permutation(np.arange(n) % classes)


@pytest.mark.parametrize(("rate", "measured"), [(0.6, 0.594), (0.9, 0.891)])
def test_symmetric_noise_with_self_has_the_closed_form_rate(rate, measured):
    y = labels(100)
    wrong = (flip_labels(Noise("symmetric", rate), y, 100, seed=0) != y).mean()
    assert wrong == pytest.approx(measured, abs=0.004)
    assert measured == pytest.approx(rate * (1 - 1 / 100))


def test_symmetric_noise_changes_at_most_the_stated_number():
    y = labels(10, 1000)
    changed = (flip_labels(Noise("symmetric", 0.3), y, 10, seed=1) != y).sum()
    assert changed <= 300


def test_symmetric_noise_without_self_has_the_stated_rate():
    y = labels(10)
    after = flip_labels(parse_noise("symmetric:0.5,include_self=false"), y, 10, seed=0)
    assert (after != y).mean() == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(after[(y == 3) & (after != 3)], minlength=10)
    assert counts[3] == 0
    assert counts[counts > 0].min() > 0.8 * counts.max()


def test_asymmetric_blocks_flip_to_the_next_class_of_five():
    y = labels(100)
    after = flip_labels(Noise("asymmetric", 0.4), y, 100, seed=0)
    assert (after != y).mean() == pytest.approx(0.40, abs=0.01)
    moved = after != y
    expected = np.array([c + 1 if (c + 1) % 5 else c - 4 for c in range(100)])
    assert (after[moved] == expected[y[moved]]).all()


def test_cifar10_map_flips_the_exact_rate_of_mapped_classes():
    y = labels(10, 50_000)
    after = flip_labels(parse_noise("asymmetric:0.4,groups=cifar10"), y, 10, seed=0)
    assert (after != y).mean() == 0.20
    for before, to in CIFAR10_MAP:
        assert ((y == before) & (after == to)).sum() == 2000


def test_superclass_noise_stays_in_the_superclass():
    assert np.bincount(CIFAR100_SUPERCLASS).tolist() == [5] * 20
    y = labels(100)
    after = flip_labels(parse_noise("asymmetric:0.4,groups=superclass"), y, 100, seed=0)
    group = np.array(CIFAR100_SUPERCLASS)
    assert (group[after] == group[y]).all()
    assert (after != y).mean() == pytest.approx(0.40, abs=0.01)


def test_map_is_read_by_class_names():
    y = np.repeat([0, 1, 2], 100)
    after = flip_labels(parse_noise("asymmetric:0.25,map=cat>dog"), y, 3, seed=0, names=("cat", "dog", "fly"))
    assert np.bincount(after).tolist() == [75, 125, 100]


def test_pair_noise_flips_to_the_next_class_cyclically():
    y = labels(7)
    after = flip_labels(parse_noise("pair:0.3"), y, 7, seed=0)
    assert set(((after - y) % 7).tolist()) == {0, 1}
    assert (after != y).mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("generator", ["cores", "pdn"])
@pytest.mark.parametrize("pixels", ["raw", "unit", "standardized"])
def test_instance_noise_has_the_stated_rate(generator, pixels):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (10_000, 48), dtype=np.uint8)
    y = labels(10, 10_000)
    noise = Noise("instance", 0.4, generator=generator, pixels=pixels)
    after = flip_labels(noise, y, 10, seed=0, x=x)
    assert (after != y).mean() == pytest.approx(0.40, abs=0.015)


def test_instance_noise_on_raw_pixels_equals_a_loop():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (200, 30), dtype=np.uint8)
    y = labels(5, 200)
    after = flip_labels(Noise("instance", 0.5), y, 5, seed=11, x=x)
    twin = np.random.default_rng(11)
    truncated_normal(0.5, 0.1, 200, twin)
    projection = twin.standard_normal((30, 5))
    agree = 0
    for i in np.flatnonzero(after != y):
        scores = [x[i].astype(float) @ projection[:, c] for c in range(5)]
        scores[y[i]] = -np.inf
        agree += int(np.argmax(scores)) == after[i]
    assert agree >= 0.97 * (after != y).sum()


def test_only_a_single_projection_makes_sink_classes():
    rng = np.random.default_rng(0)
    bright = rng.uniform(0, 255, (5000, 1))
    x = (bright + rng.normal(0, 20, (5000, 64))).clip(0, 255)
    y = labels(20, 5000)
    share = {
        kind: measure_noise(flip_labels(parse_noise(f"instance:0.4,kind={kind}"), y, 20, 0, x=x), y, 20)[
            "largest_share"
        ]
        for kind in ("cores", "pdn")
    }
    assert share["cores"] > 2 * share["pdn"]


def test_truncated_normal_shifts_its_mean_only_near_a_bound():
    rng = np.random.default_rng(0)
    q = truncated_normal(0.4, 0.1, 100_000, rng)
    assert q.min() > 0
    assert q.max() < 1
    assert q.mean() == pytest.approx(0.4, abs=0.002)
    assert truncated_normal(0.1, 0.1, 100_000, rng).mean() == pytest.approx(0.129, abs=0.002)


SPELLED = [
    "none",
    "symmetric:0.6",
    "symmetric:0.6,include_self=false",
    "asymmetric:0.4",
    "asymmetric:0.4,groups=superclass",
    "asymmetric:0.4,map=cat>dog+dog>cat",
    "pair:0.45",
    "matrix:t.csv",
    "instance:0.4,kind=pdn,pixels=unit",
]


@pytest.mark.parametrize("text", SPELLED)
def test_format_noise_inverts_parse_noise(text):
    assert format_noise(parse_noise(text)) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("symetric:0.6", '"symmetric"'),
        ("symmetric:1.5", "1.5"),
        ("symmetric", "rate"),
        ("symmetric:nan", "nan"),
        ("instance:0.4,kind=cors", '"cores"'),
        ("instance:0.4,knd=pdn", '"kind"'),
        ("pair:0.4,kind=pdn", "no option"),
        ("matrix:", "matrix:FILE.csv"),
    ],
)
def test_parse_noise_names_the_nearest_spelling(text, word):
    with pytest.raises(UserError, match=word):
        parse_noise(text)


def test_flip_labels_rejects_noise_of_other_classes():
    y = np.array([0, 1, 2])
    with pytest.raises(UserError, match="100 classes, here are 3"):
        flip_labels(parse_noise("asymmetric:0.4,groups=superclass"), y, 3, 0)
    with pytest.raises(UserError, match="needs 10 classes"):
        flip_labels(parse_noise("asymmetric:0.4,groups=cifar10"), y, 3, 0)
    with pytest.raises(UserError, match='"dog"'):
        flip_labels(parse_noise("asymmetric:0.4,map=cat>dgo"), y, 3, 0, names=("cat", "dog", "fly"))
    with pytest.raises(UserError, match="needs images or features"):
        flip_labels(parse_noise("instance:0.4"), y, 3, 0)


def test_matrix_noise_draws_rows_and_names_a_bad_one(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("0.7,0.3,0\n0,1,0\n0.5,0,0.5\n")
    y = np.repeat([0, 1, 2], 20_000)
    after = flip_labels(parse_noise(f"matrix:{file}"), y, 3, 0)
    counted = np.array([[((y == i) & (after == j)).mean() * 3 for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(counted, [[0.7, 0.3, 0], [0, 1, 0], [0.5, 0, 0.5]], atol=0.01)
    file.write_text("0.7,0.3,0\n0,0.9,0\n0.5,0,0.5\n")
    with pytest.raises(UserError, match="row 1"):
        flip_labels(parse_noise(f"matrix:{file}"), y, 3, 0)
    with pytest.raises(UserError, match="does not exist"):
        flip_labels(parse_noise(f"matrix:{tmp_path / 'no.csv'}"), y, 3, 0)


@settings(max_examples=30)
@given(
    text=st.sampled_from(["symmetric:0.6", "symmetric:0.3,include_self=false", "asymmetric:0.4", "pair:0.2", "none"]),
    classes=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_flip_labels_is_seeded_and_follows_the_matrix(text, classes, seed):
    noise = parse_noise(text)
    y = labels(classes, 3000)
    before = y.copy()
    after = flip_labels(noise, y, classes, seed)
    assert (y == before).all()
    assert (after == flip_labels(noise, y, classes, seed)).all()
    matrix = transition_matrix(noise, classes)
    np.testing.assert_allclose(matrix.sum(1), 1)
    counted = np.zeros((classes, classes))
    for i, j in zip(y, after, strict=True):
        counted[i, j] += 1
    counted /= counted.sum(1, keepdims=True)
    assert not counted[matrix == 0].any()
    n = 3000 / classes
    assert (np.abs(counted - matrix) <= 6 * np.sqrt(matrix * (1 - matrix) / n) + 1 / n).all()


def test_measure_noise_counts_as_a_loop():
    y, y_true = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, -1])
    found = measure_noise(y, y_true, 3)
    assert found == {
        "rate": 2 / 5,
        "class_histogram": [3, 3, 0],
        "class_purity": [1 / 2, 2 / 3, None],
        "largest_share": 0.5,
    }


@pytest.mark.shared
def test_human_noise_of_cifar10_has_the_published_rate(shared):
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data/images/cifar10_train.parquet", columns=["label", "human_worst"]).to_pandas()
    assert (table["label"].astype(str) != table["human_worst"].astype(str)).mean() == pytest.approx(0.4021, abs=1e-4)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=6),
    rate=st.floats(0, 1, allow_nan=False),
    seed=st.integers(0, 5),
)
def test_exact_noise_flips_the_rounded_share_of_every_class(sizes, rate, seed):
    y = np.repeat(np.arange(len(sizes)), sizes)
    after = flip_labels(Noise("symmetric", rate, include_self=False, exact=True), y, len(sizes), seed)
    for c, size in enumerate(sizes):
        assert (after[y == c] != c).sum() == round(rate * size)
    assert ((after >= 0) & (after < len(sizes))).all()


def test_exact_noise_reaches_all_other_classes_equally():
    from scipy.stats import chisquare

    y = labels(10)
    after = flip_labels(parse_noise("symmetric:0.3,exact=true"), y, 10, seed=0)
    counts = np.array([[((y == a) & (after == b)).sum() for b in range(10)] for a in range(10)])
    away = counts[~np.eye(10, dtype=bool)]
    assert chisquare(away).pvalue > 0.001
    np.testing.assert_allclose(transition_matrix(parse_noise("symmetric:0.3,exact=true"), 10).sum(1), 1)
    assert transition_matrix(parse_noise("symmetric:0.3,exact=true"), 10)[0, 0] == pytest.approx(0.7)


def test_exact_noise_excludes_the_class_itself():
    assert format_noise(parse_noise("symmetric:0.2,exact=true")) == "symmetric:0.2,exact=true"
    assert parse_noise(format_noise(parse_noise("symmetric:0.2,exact=true"))) == Noise(
        "symmetric", 0.2, include_self=False, exact=True
    )
    with pytest.raises(UserError, match="never draws the own class"):
        parse_noise("symmetric:0.2,exact=true,include_self=true")


@settings(max_examples=50)
@given(count=st.integers(0, 60), rate=st.floats(0, 1, allow_nan=False), seed=st.integers(0, 5))
def test_swapped_captions_have_no_fixed_point(count, rate, seed):
    to = swap_pairs(count, rate, seed)
    assert sorted(to.tolist()) == list(range(count))
    drawn = round(rate * count)
    assert (to != np.arange(count)).sum() == (drawn if drawn > 1 else 0)
    again = to[to]
    assert (again != np.arange(count)).sum() in (0, 3)  # pairs, and three in a ring where the number is odd
