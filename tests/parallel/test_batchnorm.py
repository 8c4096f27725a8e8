"""Synchronised batch normalisation: two processes with uneven shards are one layer."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from glacier_nb.models.build import build_unet
from glacier_nb.parallel.batchnorm import (
    _batch_statistics,
    _WholeBatchNorm2d,
    _WholeBatchNormAct2d,
    synchronise_norms,
)
from glacier_nb.parallel.launch import run_ranks
from glacier_nb.parallel.ranks import Ranks

TWO = Ranks(0, 2)


def seeded(*shape, seed=0, dtype=torch.float32):
    "Normal numbers around 3."
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 3


def with_weights(norm):
    "A layer whose weights are not ones and zeros."
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(seeded(norm.num_features, seed=1))
            norm.bias.copy_(seeded(norm.num_features, seed=2))
    return norm


LAYERS = {
    "plain": lambda: nn.BatchNorm2d(3),
    "momentum": lambda: nn.BatchNorm2d(3, momentum=0.37, eps=0.1),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "no weights": lambda: nn.BatchNorm2d(3, affine=False),
    "no running statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "with activation": lambda: BatchNormAct2d(3, act_layer=nn.SiLU, inplace=False),
    "without activation": lambda: BatchNormAct2d(3, apply_act=False),
}


def two_steps(ranks, norm, dtype):
    "Outputs, gradients and state of a layer after two training steps, and its output in evaluation."
    norm, outs, slopes = synchronise_norms(norm, ranks), [], []
    parameters = list(norm.parameters())
    for seed in (3, 4):
        image = seeded(5, 3, 4, 6, seed=seed).to(dtype)
        mine = ranks.shard(5).take(image).clone().requires_grad_()
        out = norm(mine)
        whole = ranks.gather(out.float())
        loss = (whole * torch.linspace(-1, 1, whole.numel()).reshape(whole.shape)).square().sum()
        slopes += [g.float() for g in torch.autograd.grad(loss, [mine, *parameters])]
        slopes[-1 - len(parameters)] = ranks.gather(slopes[-1 - len(parameters)])
        outs.append(whole.detach())
    slopes = [(g if g.ndim == 4 else ranks.sum(g)) / ranks.size for g in slopes]
    return outs, slopes, norm.state_dict(), norm.eval()(image).detach(), out.dtype


def unet_step(ranks, model, image):
    "Loss and gradients of a network under DDP, its batch norms synchronised."
    model = synchronise_norms(model.double(), ranks)
    # the attention of smp's last decoder block is not used, as there is no skip connection
    trained = DistributedDataParallel(model, find_unused_parameters=True) if ranks.size > 1 else model
    out = trained(ranks.shard(len(image)).take(image).double())
    loss = ranks.gather(out.softmax(1)[:, 1]).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, model.state_dict()


def networks():
    "A network of smp's layers, and one of timm's with activations in them."
    return {
        "mobilenet_v2": build_unet(5, 4, encoder="mobilenet_v2", seed=0),
        "timm": build_unet(5, 4, encoder="tu-mobilenetv3_small_050", decoder_attention="none", seed=0),
    }


def all_at_once(ranks):
    "Everything that the tests compute on two processes, as starting them takes longest."
    layers = {name: with_weights(make()) for name, make in LAYERS.items()}
    image = seeded(3, 5, 64, 64, seed=9)
    return {
        "layers": {name: two_steps(ranks, norm, torch.float32) for name, norm in layers.items()},
        "half": two_steps(ranks, with_weights(nn.BatchNorm2d(3)), torch.bfloat16),
        "one each": _batch_statistics(seeded(1, 3, 1, 1, seed=ranks.rank), ranks),
        "networks": {name: unet_step(ranks, model, image) for name, model in networks().items()},
    }


@pytest.fixture(scope="module")
def two():
    "The results of two processes."
    return run_ranks(all_at_once, 2)


@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_are_one_layer(two, name):
    expected = two_steps(Ranks(), with_weights(LAYERS[name]()), torch.float32)
    for result in two:
        for found, right in zip(result["layers"][name][:4], expected[:4], strict=True):
            assert_close(found, right, atol=2e-5, rtol=1e-5)  # float32, sums in another order
        assert list(result["layers"][name][2]) == list(expected[2])
    first, second = (result["layers"][name][2] for result in two)
    assert all(torch.equal(x, second[key]) for key, x in first.items())  # the ranks agree to the bit


def test_half_precision_in_and_out_and_float32_between(two):
    expected = two_steps(Ranks(), with_weights(nn.BatchNorm2d(3)), torch.bfloat16)
    for result in two:
        outs, _, state, _, dtype = result["half"]
        assert dtype == torch.bfloat16
        assert_close(outs, expected[0], atol=0.05, rtol=0.01)  # a bfloat16 has three digits
        assert_close(state, expected[2], atol=1e-5, rtol=1e-5)  # the statistics have all of them


def test_one_value_on_each_process_is_enough(two):
    values = torch.stack([seeded(3, seed=rank) for rank in range(2)])
    for result in two:
        mean, variance, count = result["one each"]
        assert_close((mean, variance), (values.mean(0), values.var(0, correction=0)))
        assert count == 2


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm"])
def test_networks_under_ddp_are_one_network(two, name):
    image = seeded(3, 5, 64, 64, seed=9)
    loss, gradients, state = unet_step(Ranks(), networks()[name], image)
    for result in two:
        found, found_gradients, found_state = result["networks"][name]
        assert abs(found - loss) < 1e-12
        assert_close(found_gradients, gradients, atol=1e-10, rtol=1e-8)
        assert list(found_state) == list(state)
        assert_close(found_state, state, atol=1e-10, rtol=1e-8)


def test_networks_hold_the_right_layers():
    model = synchronise_norms(networks()["timm"], TWO)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {_WholeBatchNorm2d, _WholeBatchNormAct2d}


def test_parameters_hooks_and_mode_stay():
    seen, model = [], nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval(), nn.ReLU())
    model[1].register_forward_hook(lambda *_: seen.append(1))
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    assert synchronise_norms(model, TWO) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert type(model[1]) is _WholeBatchNorm2d
    assert not model[1].training
    model(seeded(2, 3, 4, 4))
    assert seen == [1]
    assert_close(model.state_dict(), state, atol=0, rtol=0)
    layer = model[1]
    assert synchronise_norms(model, TWO)[1] is layer  # twice is once
    assert copy.deepcopy(model)[1].ranks == TWO


def test_a_layer_used_twice_stays_one():
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm), "c": norm})
    synchronise_norms(model, TWO)
    assert model["a"] is model["b"][0] is model["c"]
    assert type(model["a"]) is _WholeBatchNorm2d


def test_the_network_may_be_a_single_layer():
    assert type(synchronise_norms(nn.BatchNorm2d(3), TWO)) is _WholeBatchNorm2d


def test_one_rank_changes_nothing():
    model = networks()["timm"]
    before = list(model.modules())
    assert all(a is b for a, b in zip(synchronise_norms(model, Ranks()).modules(), before, strict=True))


class Odd(nn.BatchNorm2d):
    "A layer with a forward pass of its own."

    def forward(self, x):
        return super().forward(x).relu()


class Named(nn.BatchNorm2d):
    "A layer that inherits its forward pass."


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm3d(3), Odd(3)])
def test_unknown_layers_are_refused_and_nothing_is_changed(norm):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(norm))
    with pytest.raises(ValueError, match=f"1.0 is a {type(norm).__name__}, which cannot be synchronised"):
        synchronise_norms(model, TWO)
    assert type(model[0]) is nn.BatchNorm2d


def test_a_subclass_that_inherits_its_forward_is_accepted():
    assert type(synchronise_norms(Named(3), TWO)) is _WholeBatchNorm2d


def test_a_single_value_is_refused():
    with pytest.raises(ValueError, match="found 1 values per channel on all processes together"):
        _batch_statistics(torch.zeros(1, 3, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_use_the_layer_of_pytorch():
    model = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3, act_layer=nn.SiLU)).cuda()
    keys, act = list(model.state_dict()), model[1].act
    synchronise_norms(model, TWO)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in model)
    assert list(model.state_dict()) == keys
    assert model[1].act is act
