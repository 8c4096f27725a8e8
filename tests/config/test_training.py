"""TrainConfig: every wrong value is refused by name, every allowed one survives JSON."""

import re
from dataclasses import asdict, fields

import pytest

from glacier_nb.augment.photometric import _POLICIES
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.files import read_config
from glacier_nb.config.training import TrainConfig
from glacier_nb.files.paths import atomic_write, project_root
from glacier_nb.training.callbacks import run_path
from glacier_nb.training.schedules import _SCHEDULES

WRONG_TYPE = {"numbers": True, "int": 0.5, "float": "fast", "bool": 1, "str": 7, "float | None": "half", "str | None": 3}


@pytest.mark.parametrize("f", fields(TrainConfig), ids=lambda f: f.name)
def test_wrong_type_names_field_and_value(f):
    kind = f.type.__name__ if isinstance(f.type, type) else str(f.type)
    value = WRONG_TYPE.get(f.metadata["holds"], WRONG_TYPE.get(kind, [1]))
    with pytest.raises(ConfigError, match=rf"^{f.name} = {re.escape(repr(value))} is not allowed: expected"):
        TrainConfig(**{f.name: value})


@pytest.mark.parametrize("f", [f for f in fields(TrainConfig) if f.metadata["choices"]], ids=lambda f: f.name)
def test_wrong_choice_lists_the_choices(f):
    with pytest.raises(ConfigError) as e:
        TrainConfig(**{f.name: "nonsense"})
    assert all(repr(choice) in str(e.value) for choice in f.metadata["choices"])


@pytest.mark.parametrize(
    "f", [f for f in fields(TrainConfig) if f.metadata["low"] is not None], ids=lambda f: f.name
)
@pytest.mark.parametrize("value", ["low", "nan", "inf"])
def test_out_of_range(f, value):
    value = f.metadata["low"] - 1 if value == "low" else float(value)
    with pytest.raises(ConfigError, match=f"^{f.name} = "):
        TrainConfig(**{f.name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"fold": 5},
        {"batch_size": 9, "accumulate": 2},
        {"crop_size": 48 + 1},
        {"lr_min": 1.0},
        {"warmup_epochs": 16.0},
        {"resume": True},
        {"run": "../elsewhere"},
        {"focal_gamma": -1.0},
        {"focal_gamma": "1;2"},
        {"mcc_weight": 0.7, "dice_weight": 0.7},
        {"focal_weight": 0.0, "dice_weight": 0.0, "mcc_weight": 0.0, "boundary_weight": 0.0},
    ],
    ids=str,
)
def test_contradictions_name_their_parameters(values):
    with pytest.raises(ConfigError) as e:
        TrainConfig(**values)
    assert any(name in str(e.value) for name in values)


@pytest.mark.parametrize(
    "given", [{}, {"mcc_weight": 1.0}, {"mcc_weight": 0.5}, {"focal_weight": 0.2, "dice_weight": 0.1}]
)
def test_given_weights_are_used_and_the_rest_sums_to_one(given):
    weights = TrainConfig(**given).loss_weights()
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
    assert all(weights[k.removesuffix("_weight")] == v for k, v in given.items())


def test_four_given_weights_are_used_as_they_are():
    given = {"focal_weight": 2.0, "dice_weight": 0.0, "mcc_weight": 3.0, "boundary_weight": 0.5}
    assert TrainConfig(**given).loss_weights() == {"focal": 2.0, "dice": 0.0, "mcc": 3.0, "boundary": 0.5}


def test_json_round_trip(tmp_path):
    cfg = TrainConfig(run="x", lr=3e-4, mcc_weight=1, encoder_weights="imagenet", focal_gamma="2,2,1,0")
    assert read_config(cfg.save(tmp_path / "config.json")) == cfg
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_namespace_ignores_values_that_are_not_plain():
    space = {
        "In": [""],
        "Out": {},
        "_private": 3,
        "pathlib": re,
        "exit": print,
        **asdict(TrainConfig(epochs=3)),
    }
    assert TrainConfig.from_namespace(space) == TrainConfig(epochs=3)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="unknown parameter 'mcc_wieght': did you mean 'mcc_weight'"):
        TrainConfig.from_namespace({"mcc_wieght": 1})


def test_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")

    def interrupted():
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_root_is_found_from_nbs(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    assert project_root(tmp_path / "nbs") == project_root(tmp_path) == tmp_path.resolve()


def test_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"has no last\.pt to resume from"):
        run_path(TrainConfig(run="new", resume=True), outputs=tmp_path)


def test_choices_are_the_names_that_the_modules_define():
    choices = {f.name: f.metadata["choices"] for f in fields(TrainConfig)}
    assert choices["schedule"] == tuple(_SCHEDULES)
    assert choices["augment"] == tuple(_POLICIES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "weighted", "class_fractions": "0.5,0.5"}, "expected sampler = 'pixel'"),
        ({"sampler": "random", "interface_fraction": 0.2}, "expected sampler = 'pixel'"),
        ({"interface_classes": "debris"}, "interface_classes = 'debris' is not allowed: expected two"),
        ({"tta_scales": "1,5"}, "tta_scales = '1,5' is not allowed"),
        ({"tta_scales": "1,1"}, "expected different numbers"),
        ({"tta": "rotations"}, "one of 'none', 'flips', 'dihedral'"),
        ({"architecture": "Unet++"}, "'UnetPlusPlus', 'DeepLabV3Plus', 'SegFormer', 'scratch'"),
        ({"first_conv": "copy"}, "one of 'bands', 'cycle', 'mean'"),
    ],
)
def test_choices_of_networks_crops_and_views(values, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "changed",
    [{}, {"focal_gamma": "2,1,1,3", "lr": 1e-05}, {"run": "it's <b>", "devices": 2, "mcc_weight": 1.0}],
)
def test_a_config_shows_what_differs_from_the_defaults(changed):
    cfg = TrainConfig(**changed)
    assert eval(repr(cfg)) == cfg
    assert repr(cfg) == f"TrainConfig({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
    first, folded = cfg._repr_html_().split("<details>")
    assert [name for name in changed if f">{name}<" not in first or f">{name}<" in folded] == []
    assert folded.count("<tr>") == 1 + len(fields(TrainConfig)) - len(changed)
    assert "<b>" not in first.partition("</b>")[2]
    assert "color" not in first + folded  # readable on light and on dark
