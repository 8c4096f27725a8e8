"""Networks: architectures, encoders, seeds, and errors for pairs that do not work."""

import pytest
import torch

from glacier_nb.models.build import _ARCHITECTURES, _VERSATILE_ENCODERS, build_unet, predict_logits
from glacier_nb.models.weights import WeightsError

SMP = _ARCHITECTURES[:-1]
# smp builds these and does not use them: attention over a skip that is not there, the head of a classifier
NEVER_USED = ("blocks.4.attention1", "blocks.x_0_4.attention1", "encoder._conv_head", "encoder._bn1")


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
@pytest.mark.parametrize("encoder", _VERSATILE_ENCODERS[1:])
def test_versatile_encoders_work_with_every_architecture(architecture, encoder):
    model = build_unet(7, 4, encoder, architecture=architecture)
    assert model.training
    assert predict_logits(model.eval(), torch.randn(1, 7, 70, 33)).shape == (1, 4, 70, 33)
    model.train()(torch.randn(2, 7, 64, 64)).mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(any(part in name for part in NEVER_USED) for name in idle), idle


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_any_network_trains_on_images_of_any_size_as_it_predicts_them(architecture):
    model = build_unet(2, 3, "resnet18", decoder_attention="none", architecture=architecture)
    assert model(torch.randn(2, 2, 20, 12)).shape == (2, 3, 20, 12)
    image = torch.randn(2, 2, 40, 65)
    logits = model(image)
    logits.mean().backward()
    assert logits.shape == (2, 3, 40, 65)
    if architecture != "Unet":  # which takes this size as it is
        torch.testing.assert_close(model.eval()(image), predict_logits(model, image), rtol=1e-3, atol=1e-4)


def test_a_network_that_fits_is_not_padded(monkeypatch):
    model = build_unet(2, 3, "resnet18")
    monkeypatch.setattr("glacier_nb.models.build._pad", None)
    assert model(torch.randn(1, 2, 80, 80)).shape == (1, 3, 80, 80)
    with pytest.raises(TypeError, match="not callable"):
        build_unet(2, 3, architecture="scratch")(torch.randn(1, 2, 80, 80))


@pytest.mark.parametrize("architecture", SMP)
def test_default_encoder_works_with_every_architecture(architecture):
    assert _VERSATILE_ENCODERS[0] == "resnet34"
    assert predict_logits(build_unet(5, 2, architecture=architecture).eval(), torch.randn(1, 5, 32, 32)).shape


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_same_seed_same_weights_and_the_generator_is_left_alone(architecture):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = build_unet(5, 2, "resnet18", architecture=architecture)
    assert torch.equal(torch.rand(3), expected)
    two = build_unet(5, 2, "resnet18", architecture=architecture)
    other = build_unet(5, 2, "resnet18", architecture=architecture, seed=1)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_trial_forward_pass_leaves_the_running_statistics():
    for name, value in build_unet(5, 2, "resnet18").named_buffers():
        assert float(value.abs().sum()) == (len(value) if "running_var" in name else 0)


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus"])
@pytest.mark.parametrize(("attention", "found"), [("scse", True), ("none", False)])
def test_decoder_attention(architecture, attention, found):
    model = build_unet(5, 2, "resnet18", decoder_attention=attention, architecture=architecture)
    assert ("SCSE" in " ".join(type(m).__name__ for m in model.modules())) is found
    assert model.network.endswith(f"decoder_attention = '{attention}'")


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus"])
def test_decoder_channels(architecture):
    options = {"decoder_attention": "none", "architecture": architecture}
    whole, half = (
        build_unet(5, 2, "resnet18", **options, **more)
        for more in ({}, {"decoder_channels": (128, 64, 32, 16, 8)})
    )
    assert half.segmentation_head[0].in_channels == 8 == whole.segmentation_head[0].in_channels / 2
    assert half(torch.zeros(1, 5, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("channels", "attention", "least"),
    [
        ((64, 32), "none", 1),
        ((64, 32, 16, 8, 0), "none", 1),
        ((128, 64, 32, 16, 8.5), "none", 1),
        ((128, 64, 32, 16, float("nan")), "none", 1),
        ((128, 64, 32, 16, 8), "scse", 16),
    ],
)
def test_decoder_channels_that_are_not_possible(channels, attention, least):
    with pytest.raises(WeightsError, match=f"decoder_channels = .*five whole numbers.* at least {least} "):
        build_unet(5, 2, "resnet18", decoder_attention=attention, decoder_channels=channels)


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "SegFormer", "scratch"])
def test_attention_that_does_not_apply_is_named(architecture):
    one, two = (
        build_unet(5, 2, "resnet18", decoder_attention=a, architecture=architecture) for a in ("scse", "none")
    )
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.network == two.network
    assert "not apply" in one.network


@pytest.mark.parametrize(
    ("encoder", "nearest"),
    [
        ("resnet-34", "resnet34"),
        ("convnext_atto", "tu-convnext_atto"),
        ("tu-convnext_ato", "tu-convnext_atto"),
        ("effcientnet-b0", "efficientnet-b0"),
        ("tu-qqqqqqqq", "of timm: none"),
        ("", "nearest: none"),
    ],
)
def test_unknown_encoder(encoder, nearest):
    with pytest.raises(WeightsError, match=f"encoder = '{encoder}' is unknown.*{nearest}"):
        build_unet(5, 4, encoder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "unet"}, "expected Unet, .*, scratch; did you mean 'Unet'"),
        ({"architecture": "Segformer"}, "did you mean 'SegFormer'"),
        ({"decoder_attention": "se"}, "decoder_attention = 'se' is unknown: expected scse, none"),
        ({"first_conv": "cyclic"}, "first_conv = 'cyclic' is unknown: .*did you mean 'cycle'"),
        (
            {"architecture": "scratch", "encoder_weights": "imagenet"},
            "encoder_weights = 'imagenet' with architecture = 'scratch': .*encoder_weights = None",
        ),
    ],
)
def test_unknown_choice(options, words):
    with pytest.raises(WeightsError, match=words):
        build_unet(5, 4, "resnet18", **options)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("UnetPlusPlus", "mit_b0"),
        ("DeepLabV3Plus", "vgg11"),
        ("DeepLabV3Plus", "tu-pvt_v2_b0"),
        ("Unet", "tu-vit_tiny_patch16_224"),
        ("SegFormer", "tu-swin_tiny_patch4_window7_224"),
    ],
)
def test_pair_that_does_not_work(architecture, encoder):
    words = f"encoder = '{encoder}' does not work with architecture = '{architecture}'"
    words += ".*Encoders that work with every architecture"
    with pytest.raises(WeightsError, match=words):
        build_unet(5, 4, encoder, architecture=architecture)


@pytest.mark.parametrize("architecture", ["Unet", "SegFormer"])
def test_transformer_works_with_unet_and_segformer(architecture):
    assert build_unet(5, 4, "mit_b0", architecture=architecture)(torch.zeros(1, 5, 64, 64)).shape[1] == 4


def test_batch_of_one_crop_with_deeplab():
    model = build_unet(5, 4, "resnet18", architecture="DeepLabV3Plus")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        model(torch.randn(1, 5, 128, 128))
    assert model(torch.randn(2, 5, 32, 32)).shape == (2, 4, 32, 32)
    assert model.eval()(torch.randn(1, 5, 32, 32)).shape == (1, 4, 32, 32)


def test_description_of_a_network():
    model = build_unet(7, 4, "resnet18", seed=3)
    assert str(model.started_from) == "random weights (seed 3)"
    assert model.network == (
        "architecture = 'Unet', encoder = 'resnet18', 7 channels in, 4 classes out; "
        "decoder_attention = 'scse'"
    )
