"""Choice of precision and memory format; GPUs are mocked, so the tests run without one."""

import copy
import json
import math
import random

import pytest
import torch
from torch import nn

from glacier_nb.config.fields import ConfigError
from glacier_nb.training import precision as module
from glacier_nb.training.precision import Precision, _candidates, _fastest, _measure_precision, _native_dtypes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLAIN, SHORT = Precision(torch.float32, True), Precision(torch.bfloat16, True)


def network():
    "Small, but with everything that a pass could leave changed: batch norm, dropout, gradients."
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)
    )


def made_up(monkeypatch, seconds):
    "Replace the measurement by these seconds; the list records its calls."
    asked = []

    def measure(model, shape, candidates, device, **_):
        asked.append((shape, list(candidates)))
        return {a: seconds[a] for a in candidates}

    monkeypatch.setattr(module, "_measure_precision", measure)
    return asked


# precision


@pytest.mark.parametrize(
    ("has", "native"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_bf16_on_a_processor_that_has_it(monkeypatch, has, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert _native_dtypes(CPU) == [torch.float32, torch.bfloat16][: 1 + native]
    assert Precision.choose("auto", "auto", CPU) == PLAIN
    assert len(_candidates("measure", "measure", CPU)) == 2 + 2 * native


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), torch.float32), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu(monkeypatch, capability, dtype):
    ampere = capability >= (8, 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: ampere)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = _candidates("measure", "measure", GPU)
    assert found[0] == Precision(dtype, True)
    assert len(found) == len(set(found)) == (6 if ampere else 4)
    assert (SHORT in found) == ampere
    assert _candidates("auto", "auto", GPU) == [Precision(dtype, True)]
    for name in ("auto", "measure"):  # without a network nothing is measured
        assert Precision.choose(name, "channels_last", GPU).dtype == dtype


def test_unknown_names():
    for call in (
        lambda: _candidates("bf15", "auto", CPU),
        lambda: Precision.choose("bf15", "channels_last", CPU),
        lambda: Precision.choose("bf15", "contiguous", CPU, network(), (2, 3, 8, 8)),
    ):
        with pytest.raises(
            ConfigError, match="precision = 'bf15' is unknown: expected auto, measure, fp32, fp16, bf16"
        ):
            call()
    with pytest.raises(
        ConfigError, match="memory_format = 'nhwc' is unknown: expected auto, measure, channels_last, c"
    ):
        _candidates("fp32", "nhwc", CPU)


# precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_words_and_back(dtype, last):
    choice = Precision(dtype, last)
    words = json.loads(json.dumps(choice.to_dict()))
    assert Precision.from_dict(words) == choice
    assert _candidates(words["precision"], words["memory_format"], CPU) == [choice]
    with choice.autocast(CPU):
        x = torch.ones(1, 2, 3, 3).to(memory_format=choice.memory_format)
        y = nn.Conv2d(2, 2, 1)(x)
    assert y.dtype == dtype
    assert x.is_contiguous(memory_format=choice.memory_format)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"precision": "fp32"},
        {"precision": "auto", "memory_format": "contiguous"},
        None,
        "fp32",
        ["fp32"],
        {"precision": "fp64", "memory_format": "contiguous"},
    ],
)
def test_wrong_words(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Precision.from_dict(wrong)


def test_what_was_asked_for_is_not_measured(monkeypatch):
    asked = made_up(monkeypatch, {})
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        found = Precision.choose(precision, "contiguous", CPU, network(), (2, 3, 8, 8))
        assert found == Precision(dtype, False)
    assert not asked


def test_margin():
    assert _fastest({PLAIN: 1.0, SHORT: 0.96}) == PLAIN
    assert _fastest({PLAIN: 1.0, SHORT: 0.95}) == SHORT
    assert _fastest({PLAIN: 1.0, SHORT: 2.0}) == PLAIN
    assert _fastest({PLAIN: math.inf, SHORT: 2.0}) == SHORT
    with pytest.raises(
        ConfigError, match=r"memory is too small .*float32, channels last, nor in bfloat16.*batch"
    ):
        _fastest({PLAIN: math.inf, SHORT: math.inf})


def test_measuring_leaves_no_trace():
    model = network().eval()
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict()), [copy.deepcopy(p.grad) for p in model.parameters()]
    layout, state, python = model[0].weight.stride(), torch.get_rng_state(), random.getstate()
    candidates = _candidates("measure", "measure", CPU)
    seconds = _measure_precision(model, (2, 3, 8, 8), candidates, CPU, rounds=2)
    assert list(seconds) == candidates
    assert all(0 < s < 10 for s in seconds.values())
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[1], strict=True))
    assert not model.training
    assert not model[0].weight.requires_grad
    assert model[0].weight.stride() == layout
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


def test_what_is_measured(monkeypatch):
    "Every candidate sees the whole shape, in training, in its own format and precision, in turn."
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            formats = [t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight)]
            seen.append((tuple(x.shape), self.training, y.dtype, *formats))
            return y

    candidates = [Precision(d, last) for d in (torch.float32, torch.bfloat16) for last in (True, False)]
    _measure_precision(Spy(3, 4, 3, padding=1).eval(), (2, 3, 16, 32), candidates, CPU, rounds=2)
    expected = [((2, 3, 16, 32), True, a.dtype, a.channels_last, a.channels_last) for a in candidates]
    assert seen == expected * 3


class Clock:
    "Each candidate takes the time that is mocked for it; the first round is slow."

    def __init__(self, seconds):
        self.seconds, self.now, self.calls = seconds, 0.0, []

    def trial(self, model, choice, image):
        def run():
            self.calls.append(choice)
            took = self.seconds[choice] * (100 if self.calls.count(choice) == 1 else 1)
            if took == math.inf:
                raise torch.OutOfMemoryError("mocked")
            self.now += took
            return took

        return run

    def perf_counter(self):
        return self.now


def test_first_round_does_not_count_and_memory_may_be_too_small(monkeypatch):
    clock = Clock({PLAIN: 0.5, SHORT: math.inf})
    monkeypatch.setattr(module, "_trial", clock.trial)
    found = _measure_precision(network(), (2, 3, 8, 8), [PLAIN, SHORT], CPU)
    assert found == {PLAIN: 0.5, SHORT: math.inf}
    assert clock.calls == [PLAIN, SHORT] * 6


def test_budget_ends_measuring_after_a_whole_round(monkeypatch):
    clock = Clock({PLAIN: 3.0, SHORT: 2.0})
    monkeypatch.setattr(module, "_trial", clock.trial)
    monkeypatch.setattr(module, "time", clock)
    found = _measure_precision(network(), (2, 3, 8, 8), [PLAIN, SHORT], CPU, rounds=50, budget=520.0)
    assert found == {PLAIN: 3.0, SHORT: 2.0}
    assert (
        clock.calls == [PLAIN, SHORT] * 6
    )  # 500 seconds of warm-up, then 5 each round until it is above 520


# what auto and measure stand for


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_auto_is_not_measured(monkeypatch, precision):
    asked = made_up(monkeypatch, {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    assert Precision.choose(precision, "auto", CPU, network(), (16, 3, 512, 64)) == PLAIN
    assert not asked


def test_measure_takes_the_fastest(monkeypatch):
    contiguous = Precision(torch.float32, False)
    asked = made_up(monkeypatch, {PLAIN: 1.0, contiguous: 0.5})
    assert Precision.choose("fp32", "measure", CPU, network(), (16, 3, 512, 64)) == contiguous
    assert asked == [((4, 3, 256, 64), [PLAIN, contiguous])]  # a CPU measures less than was asked


def test_memory_too_small_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    seconds = dict.fromkeys(_candidates("measure", "measure", GPU), math.inf)
    asked = made_up(monkeypatch, seconds | {PLAIN: 1.0})
    assert Precision.choose("measure", "measure", GPU, network(), (64, 3, 512, 512)) == PLAIN
    assert asked[0][0] == (64, 3, 512, 512)  # a GPU measures the shape itself
    made_up(monkeypatch, seconds)
    with pytest.raises(ConfigError, match=r"too small .* lower batch_size"):
        Precision.choose("measure", "measure", GPU, network(), (65, 3, 512, 512))
