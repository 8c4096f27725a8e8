"""The average of the weights: parity with a loop by hand, buffers, resuming to the bit, wrong states."""

import copy
import io

import pytest
import torch
from bitwise import same
from torch import nn

from glacier_nb.config.fields import ConfigError
from glacier_nb.models.build import build_unet
from glacier_nb.training.ema import WeightAverage, _decay_at


def network(seed=0, width=6):
    "Convolution, batch norm with its three buffers, and a frozen layer."
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1))
    model[3].bias.requires_grad_(False)
    return model


def steps(model, optimizer, average, first, last):
    "Optimizer steps from `first` to before `last`; each depends on its number alone."
    for step in range(first, last):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
        average.update(step + 1)


def through_a_file(state):
    "As a checkpoint: written, and read without running code."
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_as_by_hand_in_float64(decay):
    model = network()
    optimizer, average = torch.optim.SGD(model.parameters(), lr=0.5), WeightAverage(model, decay)
    expected = None
    for step in range(12):
        steps(model, optimizer, average, step, step + 1)
        now = {k: v.double() for k, v in model.state_dict().items()}
        mix = min(decay, (2 + step) / (11 + step))
        expected = now if expected is None else {k: mix * expected[k] + (1 - mix) * now[k] for k in now}
    found = average.model.state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, value in found.items():
        if name == "1.num_batches_tracked":
            assert value == model[1].num_batches_tracked == 12
        else:  # float32 rounds each of the twelve updates
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["1.running_mean"], model[1].running_mean)
    assert not torch.equal(found["0.weight"], model[0].weight)


def test_decay_warms_up_to_its_final_value():
    values = [_decay_at(step, 0.95) for step in range(400)]
    assert values[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert values == sorted(values)
    assert values[-1] == 0.95
    assert _decay_at(169, 0.95) < 0.95 == _decay_at(171, 0.95)


def test_averaging_does_not_touch_the_training():
    runs = []
    for averaged in (True, False):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

        class Nothing:
            def update(self, step):
                pass

        steps(model, optimizer, WeightAverage(model, 0.9) if averaged else Nothing(), 0, 5)
        runs.append(model)
    assert same(runs[0].state_dict(), runs[1].state_dict())
    assert runs[0].training
    assert runs[0][0].weight.requires_grad


def test_averaged_network_is_in_eval_mode_and_shares_no_tensor():
    model = network()
    average = WeightAverage(model, 0.9)
    steps(model, torch.optim.SGD(model.parameters(), lr=0.5), average, 0, 3)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    own = {t.data_ptr() for t in average.model.state_dict().values()}
    assert not own & {t.data_ptr() for t in model.state_dict().values()}
    plain = network(seed=5).eval()
    plain.load_state_dict(average.model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(plain(x), average.model(x))


def test_the_average_of_constant_weights_is_the_weights():
    model = network()
    average = WeightAverage(model, 0.999)
    for step in range(50):
        average.update(step + 1)
    assert same(average.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (0, 2, 3, 5, 7)])
def test_an_interrupted_run_ends_with_the_same_average(cuts):
    def start(seed):
        model = network(seed)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1), WeightAverage(model, 0.6)

    whole = start(0)
    steps(*whole, 0, 9)
    parts = start(0)
    for first, last in zip((0, *cuts), (*cuts, 9), strict=True):
        steps(*parts, first, last)
        states = through_a_file([part.state_dict() for part in parts])
        parts = start(7)  # another process, with other initial weights
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    assert same(parts[2].model.state_dict(), whole[2].model.state_dict())
    assert parts[2].state_dict()["updates"] == 9
    assert same(parts[0].state_dict(), whole[0].state_dict())


def test_memory_format_and_a_real_network():
    model = build_unet(5, 4, "resnet18").to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    average.update(1)
    kernel = average.model.encoder.conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    state = through_a_file(average.state_dict())
    assert state["weights"].keys() == model.state_dict().keys()
    assert same(state["weights"], model.state_dict())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5, float("nan"), float("inf")])
def test_impossible_decay(decay):
    with pytest.raises(ConfigError, match=r"decay = .* more than 0, less than 1"):
        WeightAverage(network(), decay)


@pytest.mark.parametrize(
    "wrong", [None, {}, [], {"weights": {}}, {"updates": 1}, {"weights": {}, "epoch": 1}]
)
def test_wrong_state(wrong):
    with pytest.raises(ConfigError, match=r"found .* expected updates and weights"):
        WeightAverage(network(), 0.9).load_state_dict(wrong)


def test_state_of_another_network_leaves_the_average_unchanged():
    average = WeightAverage(network(), 0.9)
    average.update(1)
    before = copy.deepcopy(average.state_dict())
    for other in (network(width=7), nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="belongs to another network"):
            average.load_state_dict(WeightAverage(other, 0.9).state_dict())
    assert same(average.state_dict()["weights"], before["weights"])
    assert average.state_dict()["updates"] == 1
