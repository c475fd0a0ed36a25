"""A last layer that is computed for the first token alone gives the feature, and the gradients, of the whole layer."""

import copy

import pytest
import torch
from tiny import CHECKPOINTS, save_tiny

from cleantune.backbones import open_backbone
from cleantune.backbones.backbone import Backbone
from cleantune.kernels.to_delete import first_token

SHORT = ["vit", "vit_mae", "vit_msn", "clip"]
"""Architectures whose feature is the first token."""


def pair(name, folder, **changes) -> tuple[Backbone, Backbone]:
    """A backbone in float64 as it is opened, and its twin whose last layer is whole."""
    short = open_backbone(save_tiny(name, folder / name, **changes)).double()
    whole = copy.deepcopy(short)
    (layer,) = [m for m in whole.modules() if type(m) in first_token._SHORT.values()]
    layer.__class__ = type(layer).__mro__[1]
    return short, whole


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SHORT)
def test_the_first_token_of_a_short_layer_is_that_of_the_whole_layer_forward_and_backward(name, attention, tmp_path):
    short, whole = pair(name, tmp_path)
    for backbone in (short, whole):
        backbone.hf.config._attn_implementation = attention
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    f, g = short(x), whole(x)
    assert f.shape == (3, short.width)
    torch.testing.assert_close(f, g)
    for out in (f, g):
        out.square().sum().backward()
    compared = 0
    for (key, p), q in zip(short.named_parameters(), whole.named_parameters(), strict=True):
        assert (p.grad is None) == (q[1].grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q[1].grad, msg=lambda m, key=key: f"{key}: {m}")
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", SHORT)
def test_only_the_last_layer_is_short_and_weights_keep_their_names(name, tmp_path):
    short, whole = pair(name, tmp_path)
    layers = [type(m) for m in short.modules() if isinstance(m, tuple(first_token._SHORT))]
    assert len(layers) > 1
    assert [kind in first_token._SHORT.values() for kind in layers] == [False] * (len(layers) - 1) + [True]
    assert list(short.state_dict()) == list(whole.state_dict())
    assert short.fingerprint == whole.fingerprint


@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - set(SHORT)))
def test_a_feature_of_other_tokens_has_all_layers_whole(name, tmp_path):
    backbone = open_backbone(save_tiny(name, tmp_path / name))
    assert not any(type(m) in first_token._SHORT.values() for m in backbone.modules())


def test_dropout_of_a_short_layer_draws_in_training_alone(tmp_path):
    short, _ = pair("vit", tmp_path, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5)
    layer = next(m for m in short.modules() if type(m) is first_token.FirstTokenViTLayer)
    width = layer.layernorm_before.normalized_shape[0]
    tokens = torch.randn(2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(layer.eval()(tokens), layer(tokens))
        assert not torch.equal(layer.train()(tokens), layer(tokens))


def test_a_masked_token_reaches_the_first_one_neither_short_nor_whole(tmp_path):
    short, whole = pair("vit", tmp_path)
    a, b = ([m for m in backbone.modules() if hasattr(m, "layernorm_after")][-1] for backbone in (short, whole))
    width = a.layernorm_before.normalized_shape[0]
    tokens = torch.randn(2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[..., 3] = -torch.inf
    torch.testing.assert_close(a(tokens, mask), b(tokens, mask)[:, :1])
    assert not torch.allclose(a(tokens, mask), a(tokens))
