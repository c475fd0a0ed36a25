import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cleantune.kernels.to_delete import products
from cleantune.utils import cpu

INTEL = {"vendor_id": "GenuineIntel", "flags": "fpu avx2 avx512f"}
AMD = {"vendor_id": "AuthenticAMD", "flags": "fpu avx2 avx512f"}
OLDER = {"vendor_id": "AuthenticAMD", "flags": "fpu avx2"}


@pytest.fixture(autouse=True)
def undecided():
    products.left_to_onednn.cache_clear()
    yield
    products.left_to_onednn.cache_clear()


@pytest.fixture
def of(monkeypatch):
    def known(facts):
        monkeypatch.setattr(cpu, "facts", lambda: facts)
        products.left_to_onednn.cache_clear()
        return products.left_to_onednn()

    return known


def test_onednn_multiplies_on_processors_with_avx_512_that_are_not_intels(of):
    there = torch.backends.mkldnn.is_available()
    assert [of(facts) for facts in (INTEL, AMD, OLDER, {})] == [False, there, False, False]


def test_a_torch_without_the_operator_multiplies_itself(of, monkeypatch):
    def missing(a, b):
        raise AttributeError("no such operator")

    monkeypatch.setattr(products, "_by_onednn", missing)
    assert not of(AMD)
    a, b = torch.randn(3, 4), torch.randn(4, 2)
    assert torch.equal(products.product(a, b), a @ b)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3), turned=st.tuples(st.booleans(), st.booleans()),
    cut=st.tuples(*[st.integers(0, 3)] * 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_either_library_multiplies_whatever_way_the_matrices_lie(sizes, turned, cut, seed):
    n, k, m = sizes
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, k + cut[0], generator=g)[:, cut[0] :], torch.randn(k, m + cut[1], generator=g)[:, cut[1] :]
    a, b = (x.t().contiguous().t() if turn else x for x, turn in zip((a, b), turned, strict=True))
    exact = (a.double() @ b.double()).float()
    for found in (products._by_onednn(a, b), a @ b):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_other_numbers_than_float32_are_torchs(of):
    assert of(AMD) == torch.backends.mkldnn.is_available()
    for dtype in (torch.float64, torch.bfloat16):
        a, b = torch.randn(3, 4).to(dtype), torch.randn(4, 2).to(dtype)
        assert torch.equal(products.product(a, b), a @ b)


def test_a_processor_that_nobody_describes_has_the_name_of_its_kind(monkeypatch):
    monkeypatch.setattr(cpu, "facts", dict)
    assert cpu.name()
    monkeypatch.setattr(cpu, "facts", lambda: {"model name": "Some Processor"})
    assert cpu.name() == "Some Processor"
