"""The command `glacier-nb`, in this process: what it prints, where it writes, and its exit status."""

import inspect
import json
from pathlib import Path

import pytest
import rasterio
import yaml
from scene_folders import ID, PLACE, product

from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.command import _HELP, _OPTIONS, main
from glacier_nb.runs.folder import read_metrics
from glacier_nb.runs.predict import predict

TINY = {
    **{
        "encoder": "tu-mobilenetv3_small_050",
        "encoder_weights": None,
        "decoder_attention": "none",
        "include_glcm": False,
    },
    **{"crop_size": 32, "samples_per_epoch": 16, "batch_size": 8, "epochs": 1, "n_folds": 3},
    **{"warmup_epochs": 0.0, "precision": "fp32", "checks": "off"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "An empty folder outside any project with two finished runs; the working directory."
    folder = tmp_path_factory.mktemp("anywhere")
    (folder / "data").mkdir()
    (folder / "data/demo").symlink_to(cached_demo())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "-f", "tiny.yaml", "-p", "run", "one"]) == 0
        assert main(["train", "-f", "tiny.yaml", "-p", "run", "two", "-p", "seed", "1"]) == 0
        yield folder


@pytest.mark.parametrize("name", _HELP)
def test_help_explains_each_command_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: glacier-nb {name}" in shown
    assert f"  glacier-nb {name}" in shown.split("example")[1]


def test_a_run_is_written_below_the_working_directory(folder):
    assert {p.name for p in folder.iterdir()} <= {"data", "outputs", "tiny.yaml"}
    assert read_metrics(folder / "outputs/one")["parameters"] == json.loads(
        (folder / "outputs/one/config.json").read_text()
    )


def test_a_run_without_a_name_is_named_after_its_tiles(folder, capsys):
    assert main(["train", "-f", "tiny.yaml"]) == 0
    assert (folder / "outputs/demo/metrics.json").is_file()
    assert "outputs/demo: finished" in capsys.readouterr().out


def test_a_run_without_a_name_cannot_resume(folder, monkeypatch, capsys):
    assert main(["train", "-f", "tiny.yaml", "--resume"]) == 2
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # under torchrun
        monkeypatch.setenv(name, "0")
    assert main(["train", "-f", "tiny.yaml"]) == 2
    assert capsys.readouterr().err.count("expected a name") == 2


def test_a_finished_run_is_not_trained_again(folder, capsys):
    assert main(["train", "-f", "tiny.yaml", "-p", "run", "one", "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["train", "-f", "tiny.yaml", "-p", "run", "one"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_diagnose_saves_its_report_and_reports_errors_in_its_exit_status(folder, capsys):
    assert main(["diagnose", "--quick", "-f", "tiny.yaml"]) == 1, "two steps are an error"
    assert "outputs/diagnosis-tiny/diagnosis.md" in capsys.readouterr().out
    assert (folder / "outputs/diagnosis-tiny/diagnosis.md").is_file()
    assert main(["diagnose", "--quick", "one"]) == 1
    assert (folder / "outputs/one/diagnosis.json").is_file()
    assert main(["diagnose", "one", "-p", "lr", "1.0"]) == 2
    assert main(["diagnose", "onne"]) == 2
    assert "did you mean 'one'" in capsys.readouterr().err


def test_compare_names_both_runs(folder, capsys):
    assert main(["compare", "one", "two"]) == 0
    shown = capsys.readouterr().out
    assert "held-out tiles" in shown
    assert shown.count("one") >= 2
    assert main(["compare", "three"]) == 2


def test_next_writes_a_parameter_file_that_train_reads(folder, capsys):
    assert main(["diagnose", "--quick", "one"]) == 1
    assert main(["next", "one"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("glacier-nb train --config outputs/one/")
    assert main(["train", "--config", line.split()[-1], "-p", "epochs", "0"]) == 2, (
        "its other parameters are right"
    )
    assert "epochs = 0" in capsys.readouterr().err


def test_demo_and_parameters(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "tiles"), "--tiles", "4", "--size", "64"]) == 0
    assert len(list(Path(tmp_path, "tiles/Band1").glob("*.tif"))) == 4
    assert main(["demo", str(tmp_path / "tiles")]) == 2, "an existing folder is not overwritten"
    assert main(["parameters", "lr"]) == 0
    assert "peak learning rate" in capsys.readouterr().out
    assert main(["parameters", "lerning"]) == 2


def test_options_of_maps_are_those_of_predict():
    found = {name: p.default for name, p in inspect.signature(predict).parameters.items()}
    assert {name: default for name, (default, _) in _OPTIONS.items()} | {
        "progress": True,
        "client": None,
    } == {name: default for name, default in found.items() if default is not inspect.Parameter.empty}


def test_predict_writes_maps_and_says_where(folder, tmp_path, capsys):
    scene, (x, y) = product(folder / "data/scenes"), PLACE["transform"] * (3, 2)
    assert main(["predict", "best", str(scene), "outputs/maps", "--no-confidence", "--overwrite"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"outputs/maps/{ID}.tif: ")
    assert "km2" in shown
    box = [str(v) for v in (x, y - 300, x + 150, y)]
    files = [str(path) for path in sorted(scene.glob("*_S[RT]_*.TIF"))]
    part = ["--bounds", *box, "--bounds-crs", PLACE["crs"], "--tta", "flips", "--probabilities"]
    assert main(["predict", *part, "one, two", *files, str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.glob("*.tif")} == {
        f"{ID}{end}.tif" for end in ("", "_confidence", "_probabilities")
    }
    with rasterio.open(tmp_path / f"{ID}.tif") as f:
        assert f.shape == (10, 5)
    capsys.readouterr()


def test_predict_says_what_is_wrong(folder, tmp_path, capsys):
    scenes = product(tmp_path / "scenes").parent
    wrong = {
        ("onne", str(scenes), "maps"): "Existing runs: one",
        ("one", "data/scene", "maps"): "no such file or folder",
        ("one", str(scenes), "maps", "--bounds", "0", "0", "1", "1"): "correct bounds",
        ("one", str(scenes), "maps", "--masked", "clouds"): "did you mean 'cloud'",
        ("one", str(scenes), "maps", "--tta", "all"): "expected one of none, flips, dihedral",
        ("one", str(scenes), str(scenes / "maps")): "To fix: out = 'outputs/maps'",
    }
    for arguments, text in wrong.items():
        assert main(["predict", *arguments]) == 2
        assert text in capsys.readouterr().err
    other = product(scenes, ID.replace("20201031_20201106", "20201116_20201122"))
    (tmp_path / "maps").mkdir()
    (tmp_path / f"maps/{ID}.tif").write_text("notes")
    arguments = ["predict", "one", str(scenes), str(tmp_path / "maps"), "--no-confidence"]
    assert main(arguments) == 1
    assert "1 of 2 scenes are not mapped" in capsys.readouterr().err
    assert (tmp_path / f"maps/{other.name}.tif").exists()
    assert (
        main(["predict", "one", str(scenes), str(tmp_path / "maps"), "--no-confidence", "--overwrite"]) == 0
    )


def test_predict_that_is_interrupted(folder, monkeypatch, tmp_path, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("glacier_nb.runs.predict.map_scene", interrupted)
    assert main(["predict", "one", str(product(tmp_path / "scenes")), str(tmp_path / "maps")]) == 130
    assert "run the same command again" in capsys.readouterr().err
