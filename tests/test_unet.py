"""Where the first weights come from: files, the hub, and what is said when neither works."""

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch

from glacier_nb.unet import WeightsError, build_unet, encoder_state, load_matching, read_state, widen


@pytest.fixture(scope="module")
def pretrained():
    "An RGB encoder, as a hub would deliver it."
    return smp.encoders.get_encoder("resnet18", in_channels=3, weights=None).state_dict()


@pytest.fixture(params=["encoder.pth", "encoder.safetensors", "classifier.pth", "checkpoint.pt"])
def file(request, tmp_path, pretrained):
    "The same weights in the forms in which they are met."
    path = tmp_path / request.param
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(pretrained, path)
    elif path.stem == "classifier":
        torch.save({**pretrained, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, path)
    elif path.stem == "checkpoint":
        torch.save({"weights": {f"encoder.{k}": v for k, v in pretrained.items()}, "epoch": 3}, path)
    else:
        torch.save(pretrained, path)
    return str(path)


@pytest.mark.parametrize("channels", [3, 5, 7])
def test_local_file_fills_the_whole_encoder(file, pretrained, channels):
    model = build_unet(channels, 4, "resnet18", encoder_weights=file)
    expected = pretrained["conv1.weight"] if channels == 3 else widen(pretrained["conv1.weight"], channels)
    torch.testing.assert_close(model.encoder.conv1.weight.data, expected)
    torch.testing.assert_close(
        model.encoder.state_dict()["layer4.1.bn2.weight"], pretrained["layer4.1.bn2.weight"]
    )


@pytest.mark.parametrize("channels", [4, 5, 7, 15])
def test_widened_kernels_answer_grey_like_the_rgb_ones(pretrained, channels):
    kernels = pretrained["conv1.weight"]
    grey = torch.rand(1, 1, 16, 16)
    wide = torch.nn.functional.conv2d(grey.expand(1, channels, -1, -1), widen(kernels, channels))
    torch.testing.assert_close(wide, torch.nn.functional.conv2d(grey.expand(1, 3, -1, -1), kernels))


def test_visible_bands_get_the_kernel_of_their_colour(pretrained):
    red, green, blue = pretrained["conv1.weight"].unbind(1)
    wide = widen(pretrained["conv1.weight"], 5) * 5 / 3
    torch.testing.assert_close(torch.stack([blue, green, red], 1), wide[:, :3])
    torch.testing.assert_close(wide[:, 3], (red + green + blue) / 3)


def test_hub_weights_are_widened(monkeypatch, pretrained):
    encoder = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    encoder.load_state_dict(pretrained)
    monkeypatch.setattr("glacier_nb.unet.smp.encoders.get_encoder", lambda *args, **kwargs: encoder)
    state = encoder_state("resnet18", "imagenet")
    assert load_matching(build_unet(5, 2, "resnet18").encoder, state)["conv1.weight"] == "widened"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no connection"), "could not be downloaded.*encoder_weights = None"),
        (KeyError("Wrong pretrained weights"), "resnet18 has none"),
    ],
)
def test_hub_that_cannot_deliver(monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("glacier_nb.unet.smp.encoders.get_encoder", fail)
    with pytest.raises(WeightsError, match=words):
        encoder_state("resnet18", "imagenet")


def test_weights_of_another_architecture(tmp_path):
    torch.save(
        smp.encoders.get_encoder("resnet34", in_channels=3, weights=None).state_dict(), tmp_path / "34.pth"
    )
    with pytest.raises(WeightsError, match=r"50\.pth: no such weights file"):
        build_unet(5, 4, "resnet18", encoder_weights=str(tmp_path / "50.pth"))
    with pytest.raises(WeightsError, match=r"34\.pth: the weights do not fit the encoder"):
        build_unet(5, 4, "resnet50", encoder_weights=str(tmp_path / "34.pth"))


def test_file_with_code_in_it_is_not_run(tmp_path):
    torch.save({"weights": object()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a weights file that loads safely"):
        read_state(str(tmp_path / "evil.pt"))


@pytest.mark.parametrize(("attention", "found"), [("scse", True), ("none", False)])
def test_decoder_attention(attention, found):
    names = " ".join(
        type(m).__name__ for m in build_unet(5, 2, "resnet18", decoder_attention=attention).modules()
    )
    assert ("SCSE" in names) is found
