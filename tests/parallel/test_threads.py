"Threads: chosen by what a pass takes, kept when it is a number, looked at again when that is due."

from dataclasses import replace

import pytest
import torch

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.parallel import threads as module
from glacier_nb.parallel.threads import _counts, _faster, _Threads, _timer, fit_threads
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.recipe import prepare_data


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    "A process that may use eight threads and chose none yet."
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    monkeypatch.setattr(module, "_process", _Threads())
    yield
    torch.set_num_threads(before)


def run():
    "A pass that takes no time."


class Machine:
    "Eight cores; a thread that shares a core makes all others wait for it."

    def __init__(self, busy: int = 0):
        self.busy, self.passes = busy, 0

    def __call__(self, run):
        return self.seconds

    def seconds(self, threads):
        self.passes += 1
        torch.set_num_threads(threads)
        return (0.1 + 0.9 / threads) * 3.0 ** max(0, threads + self.busy - 8)


def measured(load, threads="auto"):
    "What is chosen at the first look."
    load.choose(threads)
    return load.look(run)


def best(machine):
    return min(machine.seconds(n) for n in range(1, 9))


@pytest.mark.parametrize("busy", range(9))
def test_the_choice_is_near_the_best_for_each_load(busy):
    machine = Machine(busy)
    chosen = measured(_Threads(machine))
    assert machine.seconds(chosen) <= 1.3 * best(machine)
    assert (chosen == 8) == (busy == 0)


def test_all_threads_return_when_the_load_is_gone():
    machine = Machine(7)
    load = _Threads(machine)
    assert measured(load) == 1
    machine.busy, load.due = 0, 0.0
    assert load.look(run) == 8 == torch.get_num_threads()


def test_a_small_difference_changes_nothing():
    def noisy(run):
        return lambda threads: {8: 1.0, 6: 0.9}.get(threads, 2.0)

    assert measured(_Threads(noisy)) == 8


def test_looking_again_waits_until_it_costs_a_hundredth():
    machine = Machine()
    load = _Threads(machine)
    measured(load)
    passes = machine.passes
    assert load.look(run) == 8
    assert machine.passes == passes
    load.due = 0.0
    assert load.look(run) == 8
    assert machine.passes > passes


@pytest.mark.parametrize("threads", [3, "3"])
def test_a_number_is_kept_whatever_the_load(threads):
    machine = Machine(8)
    load = _Threads(machine)
    assert load.choose(threads) == load.look(run) == torch.get_num_threads() == 3
    assert not machine.passes


def test_nothing_is_measured_before_the_first_look():
    machine = Machine(4)
    load = _Threads(machine)
    assert load.choose("auto") == 8
    assert not machine.passes
    assert load.look(run) == 4


def test_a_run_goes_on_with_the_number_it_had():
    machine = Machine(0)
    assert _Threads(machine).choose("auto", 4) == 4
    assert not machine.passes
    torch.set_num_threads(8)
    assert _Threads(machine).choose("auto", 40) == 8  # saved on a larger machine


def test_what_is_set_outside_is_the_most():
    load = _Threads(Machine())
    load.choose("auto")
    torch.set_num_threads(2)
    load.due = 0.0
    assert load.look(run) == 2


def test_a_container_with_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(module, "_DEFAULT", 8)
    monkeypatch.setattr(module, "cpu_count", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert _Threads(Machine()).choose("auto") == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert _Threads(Machine()).choose("auto") == 3 == torch.get_num_threads()


@pytest.mark.parametrize("threads", ["two", 0, "0", -1, True, 1.5, ""])
def test_other_values_are_errors(threads):
    with pytest.raises(ConfigError, match=r"threads = .* expected auto or a number"):
        fit_threads(threads)


def test_numbers_to_choose_from():
    assert [_counts(n) for n in (1, 2, 3, 5)] == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]]
    assert _counts(96)[-3:] == [48, 64, 96]


def test_a_pass_is_timed_with_the_threads_that_were_asked_for():
    seen = []
    seconds = _timer(lambda: seen.append(torch.get_num_threads()))
    assert seconds(1) >= 0
    assert seconds(3) >= 0
    assert seen == [1, 1, 3, 3]


def test_no_further_round_begins_when_the_budget_is_used_up():
    calls = []
    assert not _faster(2, 1, lambda n: calls.append(n) or 1.0, 0.1, budget=0.0)
    assert calls == [2, 1]


def test_one_thread_needs_no_measurement():
    torch.set_num_threads(1)
    machine = Machine()
    assert measured(_Threads(machine)) == 1
    assert not machine.passes


TINY = TrainConfig(
    encoder="tu-mobilenetv3_small_050", encoder_weights=None, crop_size=32, samples_per_epoch=8, batch_size=4,
    epochs=1, warmup_epochs=0, n_folds=3, devices="cpu", include_glcm=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return prepare_data(TINY, read_tiles(cached_demo(4, 64, 3)))


def trained(data, folder, busy, monkeypatch, **changed):
    "A learner whose machine is as busy as that, after its epoch."
    torch.set_num_threads(8)
    monkeypatch.setattr(module, "_process", _Threads(Machine(busy)))
    learner = make_learner(replace(TINY, **changed), data, folder, progress=False)
    learner.fit()
    return learner


def test_a_number_of_threads_gives_the_same_weights_whatever_the_load(data, tmp_path, monkeypatch):
    quiet, loaded, chosen = (
        trained(data, tmp_path / name, busy, monkeypatch, threads=threads)
        for name, busy, threads in (("quiet", 0, 1), ("loaded", 8, 1), ("chosen", 8, "auto"))
    )
    for learner in (quiet, loaded, chosen):
        assert learner.history[0]["threads"] == 1
        for name, tensor in learner.model.state_dict().items():
            assert torch.equal(tensor, quiet.model.state_dict()[name]), name


def test_the_measurement_changes_neither_the_network_nor_the_random_numbers(data, tmp_path, monkeypatch):
    learner = make_learner(TINY, data, tmp_path / "run", progress=False)
    learner.model.train()
    frozen = next(m for m in learner.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    learner._look_at_load(next(learner.batches(0))["image"])
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    passes = []
    monkeypatch.setattr(module, "_process", _Threads(lambda run: lambda n: passes.append(run()) or 1.0))
    learner._look_at_load(torch.zeros(3, 5, 300, 300))
    assert passes
    assert learner.model.training
    assert not frozen.training
    assert torch.equal(state, torch.get_rng_state())
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in learner.model.parameters())


def test_the_number_is_kept_and_taken_again_on_resuming(data, tmp_path, monkeypatch):
    first = trained(data, tmp_path / "run", 4, monkeypatch, run="run")
    again = make_learner(replace(first.cfg, resume=True), data, tmp_path / "run", progress=False)
    again.threads = 8
    again.notify("before_fit")
    assert again.threads == first.threads == 4
    again.notify("after_fit")
