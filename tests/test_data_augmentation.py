import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cleantune.config.augmentation import ImageAugmentation
from cleantune.data.augmentation import augment_images, drop_tokens

STILL = ImageAugmentation(flip=0.0, degrees=0.0, translate=0.0, scale=0.0, num_ops=0)


def pixels(count: int = 8, height: int = 24, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_views_depend_on_the_given_generator_only(view):
    before = torch.random.get_rng_state()
    first = augment_images(pixels(), view, ImageAugmentation(), seeded())
    torch.rand(7)
    torch.random.set_rng_state(before)
    again = augment_images(pixels(), view, ImageAugmentation(), seeded())
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, augment_images(pixels(), view, ImageAugmentation(), seeded(1)))


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_views_stay_in_range_and_keep_their_input(view):
    x = pixels(64)
    kept = x.clone()
    out = augment_images(x, view, ImageAugmentation(magnitude=30.0), seeded())
    assert out.shape == x.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 255.001
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (16, 30)])
def test_zero_strength_is_the_identity(height, width):
    x = pixels(4, height, width)
    torch.testing.assert_close(augment_images(x, "strong", STILL, seeded()), x.float(), rtol=0, atol=0.01)


def test_flip_is_horizontal_with_the_given_probability():
    x = pixels(400, 8, 8)
    out = augment_images(x, "weak", ImageAugmentation(flip=0.3, degrees=0.0, translate=0.0, scale=0.0), seeded())
    mirrored = (out - x.flip(3)).abs().amax((1, 2, 3)) < 0.01
    same = (out - x).abs().amax((1, 2, 3)) < 0.01
    assert bool((mirrored ^ same).all())
    assert 0.2 < float(mirrored.float().mean()) < 0.4


def test_translation_stays_within_the_given_fraction():
    ramp = (torch.arange(20) * 10).to(torch.uint8).expand(300, 3, 20, 20)
    moved = ImageAugmentation(flip=0.0, degrees=0.0, translate=0.2, scale=0.0)
    for x in (ramp, ramp.transpose(2, 3)):
        out = augment_images(x, "weak", moved, seeded())
        pixels_moved = (out[:, 0, 10, 10] - 100) / 10
        assert 3.5 < float(pixels_moved.abs().max()) <= 4 + 1e-3
        assert abs(float(pixels_moved.mean())) < 0.5


def test_warp_pads_by_reflection():
    white = torch.full((50, 3, 20, 20), 255, dtype=torch.uint8)
    assert float(augment_images(white, "weak", ImageAugmentation(translate=0.5, degrees=45.0), seeded()).min()) > 254


@pytest.mark.parametrize("degrees", [90, 30])
def test_warp_rotates_as_pillow_does(degrees):
    from cleantune.data.augmentation import warp

    disc = np.hypot(*(np.mgrid[:41, :41] - 20)) < 15
    picture = np.asarray(Image.effect_noise((41, 41), 60).convert("RGB")) * disc[..., None]
    picture = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize((41, 41), Image.Resampling.BOX))
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    angle = torch.tensor(degrees * np.pi / 180)
    matrix = torch.eye(3)[None].clone()
    matrix[0, :2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    ours = warp(x, matrix)[0].permute(1, 2, 0)
    theirs = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR)).astype(np.float32)
    assert np.abs(ours.numpy() - theirs).mean() < 2


def test_strong_views_differ_more_than_weak_ones():
    x = pixels(64).float() * 0 + torch.linspace(0, 255, 24)[None, None, None]
    x = x.to(torch.uint8)
    weak = (augment_images(x, "weak", ImageAugmentation(flip=0.0), seeded()) - x).abs().mean()
    strong = (augment_images(x, "strong", ImageAugmentation(flip=0.0, magnitude=20.0), seeded()) - x).abs().mean()
    assert strong > 1.2 * weak


def test_each_randaugment_op_but_identity_changes_an_image():
    from cleantune.data import augmentation

    x = pixels(1).float() / 255 * 0.6 + 0.1
    changed = {
        name: bool((augmentation.apply_color_op(x, name, torch.tensor([0.5]), 0.5) - x).abs().max() > 1e-3)
        for name in augmentation.COLOR_OPS
    }
    assert changed == {name: name != "identity" for name in augmentation.COLOR_OPS}
    drawn = torch.arange(len(augmentation.COLOR_OPS), augmentation.NUM_OPS)
    matrices = augmentation.geometric_op_matrices(drawn, torch.full((5,), 0.5))
    assert len(torch.unique(matrices.view(5, 9), dim=0)) == 5
    assert not (matrices == torch.eye(3)).all((1, 2)).any()


@given(st.integers(0, 10_000), st.floats(0, 0.9))
@settings(max_examples=60)
def test_drop_tokens_equals_a_loop(seed, rate):
    generator = seeded(seed)
    lengths = torch.randint(1, 9, (5,), generator=generator)
    tokens = torch.randint(1, 50, (5, 9), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    fixed = torch.rand(5, 9, generator=generator) < 0.3
    state = generator.get_state()
    stays = torch.rand(tokens.shape, generator=generator) >= rate
    out, kept = drop_tokens(tokens, mask, fixed, rate, torch.Generator().set_state(state))
    for i in range(5):
        real = range(int(lengths[i]))
        words = [t for t in real if not fixed[i, t]]
        left = [t for t in real if fixed[i, t] or stays[i, t]]
        if words and not set(words) & set(left):
            left = list(real)
        assert out[i][kept[i]].tolist() == tokens[i, left].tolist()
        assert kept[i].tolist() == [t < len(left) for t in range(kept.shape[1])]
    assert kept.any(0).all() or kept.shape[1] == 1
