"""TrainConfig: every wrong value is refused by name, every allowed one survives JSON."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml

from glacier_nb.augment.photometric import _POLICIES
from glacier_nb.config.fields import ConfigError, check_notebook
from glacier_nb.config.files import read_config
from glacier_nb.config.training import TrainConfig
from glacier_nb.files.paths import atomic_write, project_root, write_text
from glacier_nb.training.callbacks import run_path
from glacier_nb.training.schedules import _SCHEDULES

ROOT = Path(__file__).parents[2]
WRONG_TYPE = {"int": 0.5, "float": "fast", "bool": 1, "str": 7, "float | None": "half", "str | None": 3}
WRONG_TYPE |= {"numbers": True}


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
        {"patience": 3},
        {"schedule": "plateau"},
        {"select": "last", "patience": 1, "schedule": "plateau"},
        {"fold": None, "patience": 3},
        {"fold": "none", "schedule": "plateau"},
        {"fold": "none", "tta": "flips"},
        {"fold": "none", "ensemble": "demo"},
        {"fold": None, "tta_scales": "0.75,1"},
        {"batch_size": 9, "accumulate": 2},
        {"crop_size": 48 + 1},
        {"lr_min": 1.0},
        {"warmup_epochs": 16.0},
        {"resume": True},
        {"run": "../elsewhere"},
        {"focal_gamma": -1.0},
        {"focal_gamma": "1;2"},
        {"mcc_weight": 0.7, "dice_weight": 0.7},
        {f"{k}_weight": 0.0 for k in ("focal", "dice", "mcc", "boundary", "lovasz")},
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
    assert TrainConfig(**given).loss_weights() == {
        **{"focal": 2.0, "dice": 0.0, "mcc": 3.0, "boundary": 0.5},
        "lovasz": 0.0,
    }


@pytest.mark.parametrize(
    ("given", "lovasz"),
    [
        ({}, 3 / 13),
        ({"lovasz_weight": 0.4}, 0.4),
        ({"mcc_weight": 0.5}, 0.15),
        ({"focal_weight": 0.2, "dice_weight": 0.2, "mcc_weight": 0.2, "boundary_weight": 0.2}, 0.0),
    ],
)
def test_lovasz_has_a_share_unless_the_other_four_are_given(given, lovasz):
    assert TrainConfig(**given).loss_weights()["lovasz"] == pytest.approx(lovasz, abs=1e-12)


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
    assert choices["augment"] == ("auto", *_POLICIES)


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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("run: 007", {"run": "007"}),
        ("run: 02_07", {"run": "02_07"}),
        ("run: 20240501", {"run": "20240501"}),
        ("decoder_attention: scse", {"decoder_attention": "scse", "decoder_channels": "256,128,64,32,16"}),
        ("run: 2024-05-01", {"run": "2024-05-01"}),
        ("checks: off", {"checks": "off"}),
        ("checks: no", {"checks": "off"}),
        ("checks: False", {"checks": "off"}),
        ("focal_weight: None\nencoder_weights: None", {"encoder_weights": None}),
        ("encoder_weights:\ninit_from: null", {"encoder_weights": None}),
        ("seed: 010", {"seed": 10}),
        ("seed: 1_000\nepochs: 1e2", {"seed": 1000, "epochs": 100}),
        ("lr: 1e-3\nlr_min: '1e-06'", {}),
        ("tta_scales: 1\ndata_dir: no", {"data_dir": "no"}),
        ("compile: yes\ndevices: 2", {"compile": True, "devices": 2}),
        ("fold: none\ntest_dir: data/south", {"fold": None, "test_dir": "data/south"}),
        ("fold: null", {"fold": None}),
        ("fold: 2\nsplit: regions", {"fold": 2, "split": "regions"}),
    ],
)
def test_plain_words_of_a_file_mean_what_their_parameter_says(tmp_path, text, values):
    "Also for the command, which passes the same text."
    path = write_text(tmp_path / "some.yaml", text)
    assert read_config(path) == TrainConfig(**values)
    pairs = [line.split(":") for line in text.replace("'", "").splitlines()]
    assert read_config(None, {name: value.strip() for name, value in pairs}) == TrainConfig(**values)


@pytest.mark.parametrize(
    "text", ["save_minutes: 1:30", "seed: 02_07", "lr: 0_1", "epochs: true", "fold: some", "checks: yes"]
)
def test_words_that_are_no_number_are_shown_as_written(tmp_path, text):
    name, value = text.split(": ")
    with pytest.raises(
        ConfigError, match=f"{name} = '{value}' is not allowed: expected (a|one of|none or a)"
    ):
        read_config(write_text(tmp_path / "some.yaml", text))


@pytest.mark.parametrize(
    ("injected", "values"),
    [
        ({"tta_scales": 1}, {}),
        ({"tta_scales": 0.75}, {"tta_scales": "0.75"}),
        ({"checks": False, "decoder_attention": None}, {"checks": "off", "decoder_attention": "none"}),
        ({"lr_min": "1e-06", "init_from": None}, {}),
        ({"epochs": 1}, {"warmup_epochs": 0.5, "epochs": 1}),
        ({"fold": "none", "test_dir": None}, {"fold": None}),
        ({"fold": None, "tta": "flips", "test_dir": "x"}, {"fold": None, "tta": "flips", "test_dir": "x"}),
        ({"lr": 1e-8}, {"lr": 1e-8, "lr_min": 1e-8}),
        ({"PAPERMILL_INPUT_PATH": "a.ipynb", "PAPERMILL_OUTPUT_PATH": "b.ipynb"}, {}),
    ],
    ids=str,
)
def test_what_papermill_has_parsed_means_what_the_parameter_says(injected, values):
    assert TrainConfig.from_namespace(injected) == TrainConfig(**values)


@pytest.mark.parametrize("name", ["run", "data_dir", "init_from", "encoder_weights", "ensemble"])
def test_text_that_papermill_has_turned_into_a_number_is_not_guessed(name):
    with pytest.raises(ConfigError, match=f"{name} = 7 is not allowed.*`-r {name} TEXT`"):
        TrainConfig.from_namespace({name: 7})  # was 007, 7 or 0_7
    assert getattr(TrainConfig.from_namespace({name: "007"}), name) == "007"


@pytest.mark.parametrize(
    ("name", "nearest"), [("lerning_rate", "lr"), ("batch", "batch_size"), ("n_epochs", "epochs")]
)
def test_other_words_find_a_parameter_by_its_name_or_meaning(name, nearest):
    with pytest.raises(ConfigError, match=rf"unknown parameter '{name}': did you mean '{nearest}'(\?| or)"):
        TrainConfig.check_names([name])


@pytest.fixture
def started(tmp_path, monkeypatch):
    "The config of a run that was started with three parameters; the working directory is its project."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/mine").mkdir(parents=True)
    cfg = TrainConfig(run="mine", data_dir="data/real", tta_scales="0.75,1", lr=1e-4)
    cfg.save(tmp_path / "outputs/mine/config.json")
    return cfg


def notebook(**injected) -> dict:
    "What train.ipynb holds when papermill has injected parameters."
    cell = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in injected.items())
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    return defaults | injected | {"In": ["", "the defaults", cell, "from glacier_nb"]}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data_dir": "./data/real/"},
        {"tta_scales": "0.750, 1.0", "lr": "1e-4"},
        {"lr": 1e-4, "workers": 2, "checks": "off"},
        {"lr_min": 1e-6, "warmup_epochs": 0.5},
    ],
    ids=str,
)
def test_a_run_resumes_with_what_it_was_started_with(started, given):
    resumed = {"run": "mine", "resume": True} | given
    for cfg in (TrainConfig.from_namespace(notebook(**resumed)), read_config(None, resumed)):
        assert cfg.resume
        assert not cfg.differences(asdict(started))
        assert cfg.workers == given.get("workers", 0)
    assert read_config(None, {"run": "mine"} | given, resume=True).differences(asdict(started)) == ""


@pytest.mark.parametrize("given", [{"lr": 1e-3}, {"data_dir": "data/demo"}], ids=str)
def test_what_is_given_to_a_resumed_run_and_differs_is_named_with_both_values(started, given):
    "Also where the value is the default, which only papermill's cell tells from a value that was not given."
    ((name, value),) = given.items()
    both = rf"mine was started with other parameters: {name} \(saved .*, requested {re.escape(repr(value))}\)"
    with pytest.raises(ConfigError, match=both):
        TrainConfig.from_namespace(notebook(run="mine", resume=True, **given))
    with pytest.raises(ConfigError, match=both):
        read_config(None, {"run": "mine", **given}, resume=True)
    assert TrainConfig.from_namespace(notebook(run="mine", resume=True)).differences(asdict(started)) == ""


def test_a_trial_and_a_run_do_not_continue_each_other(started):
    "They have folders of their own; in one folder they are different runs."
    cfg = read_config(None, {"run": "mine", "trial": True}, resume=True)
    assert (cfg.run, cfg.data_dir) == ("mine-trial", "data/demo")
    with pytest.raises(ConfigError, match=r"mine-trial has no last\.pt"):
        run_path(replace(cfg, resume=True))
    assert "trial" in started.differences(asdict(replace(started, trial=True)))


def test_the_config_file_of_a_run_is_read_by_papermill_too(started):
    "PyYAML reads 1e-06 as text."
    found = yaml.safe_load(Path("outputs/mine/config.json").read_text())
    assert found["lr_min"] == "1e-06"
    cfg = TrainConfig.from_namespace(notebook(**found | {"resume": True}))
    assert not cfg.differences(asdict(started))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_trial_of_any_config_is_small_and_itself_when_read_again(path):
    cfg = read_config(path, {"trial": True})
    assert cfg.epochs * cfg.steps_per_epoch(20) <= 4
    assert 0 < cfg.crop_size <= 64
    assert TrainConfig(**asdict(cfg)) == cfg
    assert "trial" in cfg.differences(asdict(read_config(path))), "it is no start of the real run"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"run": 7}, "run = 7 is not allowed.*`-r run TEXT`"),
        ({"live": "false"}, "live = 'false' is not allowed: expected True or False"),
        ({"rnu": "a"}, "unknown parameter 'rnu': did you mean 'run'"),
        ({"minutes": "long"}, "minutes = 'long' is not allowed: expected a number"),
    ],
    ids=str,
)
def test_the_other_notebooks_check_names_and_types(values, words):
    good = {"run": "a", "live": True, "minutes": 60, "PAPERMILL_INPUT_PATH": "a.ipynb"}
    kinds = {"run": str, "live": bool, "minutes": float}
    check_notebook(good, **kinds)
    with pytest.raises(ConfigError, match=words):
        check_notebook(good | values, **kinds)


def test_what_follows_the_mcc_of_an_epoch_needs_tiles_to_follow():
    for watching in ({"patience": 3}, {"schedule": "plateau"}):
        with pytest.raises(ConfigError, match=r"Expected select = 'inner'"):
            TrainConfig(**watching)
        assert TrainConfig(**watching, select="inner").select == "inner"
        assert TrainConfig(**watching, select="best").select == "best"


def test_a_run_of_a_version_without_select_chose_its_best_epoch():
    assert TrainConfig().select == "last"
    assert TrainConfig.known({"lr": 0.1})["select"] == "last"  # a few given values, not a saved config
    assert TrainConfig.known({"select": "inner"})["select"] == "inner"
    older = {k: v for k, v in vars(TrainConfig()).items() if k != "select"}
    assert TrainConfig.known(older)["select"] == "best"
    assert TrainConfig().differences(older) == "select (saved 'best', requested 'last')"
    assert TrainConfig(select="best").differences(older) == ""


def test_a_run_of_a_version_without_choice_of_decoder_had_the_whole_one():
    older = {k: v for k, v in vars(TrainConfig()).items() if k not in ("decoder_channels", "ema")}
    found = TrainConfig.known(older)
    assert (found["decoder_channels"], found["ema"]) == ("256,128,64,32,16", 0.0)
    assert TrainConfig.known({"lr": 0.1})["decoder_channels"] == TrainConfig().decoder_channels
