"""A run on two ranks is the run on one: crops, losses, gradients, statistics, checkpoints."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import rank_learners
import torch

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.train import fit_run
from glacier_nb.parallel.launch import launch
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.checkpoints import read_checkpoint
from glacier_nb.training.recipe import prepare_data

TINY = TrainConfig(
    **{
        "encoder": "tu-mobilenetv3_small_050",
        "encoder_weights": None,
        "decoder_attention": "scse",
        "include_glcm": False,
        "crop_size": 64,
        "ema": 0.0,
    },
    **{"samples_per_epoch": 14, "batch_size": 8, "accumulate": 2},
    **{"n_folds": 3, "epochs": 2, "devices": 2, "precision": "fp32", "memory_format": "channels_last"},
)


pytestmark = pytest.mark.usefixtures("forked_ranks")


@pytest.fixture(scope="module")
def cfg(forked_ranks):
    return replace(TINY, data_dir=str(cached_demo(9, 96, 3)))


@pytest.mark.slow
def test_twenty_steps_are_those_of_one_process(cfg, tmp_path):
    """Uneven shards, accumulation, geometry, all losses; in float64, where rounding does not hide a mistake.

    With a tiny network; a real one is compared in float32 in parallel/test_launch.
    """
    cfg = replace(cfg, epochs=10, augment="strong", tversky_weight=0.1, lovasz_weight=0.1)
    with ThreadPoolExecutor(2) as pool:  # at the same time
        begun = [
            pool.submit(launch, rank_learners.losses, replace(cfg, devices=n), tmp_path / str(n), 20)
            for n in (1, 2)
        ]
        (one,), (two, other) = (future.result() for future in begun)
    assert two == other  # every rank has the loss of the whole batch
    assert len(one) == len(two) == 20
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-7)


@pytest.fixture(scope="module")
def both(cfg, tmp_path_factory):
    "A run on two ranks, with averaged weights, an inner block and without synchronised batch norms."
    cfg = replace(cfg, sync_batchnorm=False, ema=0.9, run="both", select="inner")
    folder = tmp_path_factory.mktemp("runs") / "both"
    return cfg, folder, launch(rank_learners.fitted, cfg, folder)


@pytest.mark.slow
def test_all_ranks_end_with_the_same_weights_and_rank_0_writes(both):
    _, folder, (first, second) = both
    assert first["history"] == second["history"]
    assert first["weights"] == second["weights"]
    assert first["evaluated"] == second["evaluated"]  # running statistics are those of rank 0
    assert first["crops"] + second["crops"] == 14
    assert first["frozen"]  # the scse attention of the last block, without effect on the logits
    saved = read_checkpoint(folder / "last.pt")
    assert {k: v.double().sum().item() for k, v in saved["weights"].items()} == first["evaluated"]
    assert len(saved["rng"]) == 2
    assert first["score"]["chosen_on"] == first["inner"] == second["inner"] == saved["split"]["inner"]
    assert set(first["score"]["per_tile"]) == set(saved["split"]["val"])
    assert second["score"] == {}


@pytest.mark.slow
def test_a_run_stopped_on_one_rank_stops_on_all_and_resumes_to_the_same_end(both, tmp_path):
    cfg, _, (first, _) = both
    ends = launch(rank_learners.stopped_after, cfg, tmp_path / "both", 3)
    assert [end[:2] for end in ends] == [("SIGTERM", 3)] * 2
    saved = read_checkpoint(tmp_path / "both/last.pt")["progress"]
    assert (saved["epoch"], saved["step"], len(saved["records"])) == (1, 3, 1)
    again, _ = launch(rank_learners.fitted, replace(cfg, resume=True), tmp_path / "both")
    first["score"]["parameters"] |= {"resume": True}
    assert again == first


@pytest.mark.slow
def test_the_launching_process_shows_progress_and_holds_the_final_weights(cfg, tmp_path, capsys):
    learner = make_learner(cfg, prepare_data(cfg, run_tiles(cfg)), tmp_path / "run")
    history = fit_run(learner)
    saved = read_checkpoint(tmp_path / "run/last.pt")
    assert [r["epoch"] for r in history] == [1, 2]
    assert all(torch.equal(saved["weights"][k], v) for k, v in learner.model.state_dict().items())
    assert capsys.readouterr().out.count("MCC") == 2
    found = learner.validate()
    assert {"macro_mcc", "class_mcc_lake"} < found.keys()
    assert found == {k: history[-1][k] for k in found}


def test_fewer_crops_than_processes_are_refused(cfg, tmp_path, monkeypatch):
    from glacier_nb.parallel.ranks import Ranks

    monkeypatch.setattr(Ranks, "here", lambda: Ranks(0, 4))
    data = prepare_data(cfg, run_tiles(cfg))
    with pytest.raises(ConfigError, match=r"leave 2 in one batch, fewer than the 4 processes that share it"):
        make_learner(cfg, data, tmp_path / "run", progress=False)
