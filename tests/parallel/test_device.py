"""Devices and random state; GPUs are mocked, so the tests run without one."""

import pytest
import torch

from glacier_nb.config.fields import ConfigError
from glacier_nb.parallel.device import pick_device, processes

CPU = torch.device("cpu")


@pytest.fixture(params=[0, 1, 2, 8])
def gpus(request, monkeypatch):
    "A mocked host with that many GPUs."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


# devices


def test_auto_and_names(gpus):
    assert processes("auto") == max(1, gpus)
    assert processes("cpu") == 1
    assert pick_device("cpu", local_rank=5) == CPU
    if gpus:
        assert processes("cuda") == gpus
        assert [pick_device("auto", i).index for i in range(gpus)] == list(range(gpus))
    else:
        assert pick_device("auto") == CPU
        with pytest.raises(ConfigError, match="finds no CUDA device"):
            processes("cuda")


@pytest.mark.parametrize("n", [1, 2, 3, "2"])
def test_numbers(gpus, n):
    if gpus == 0:  # as many processes on the CPU
        assert (processes(n), pick_device(n, int(n) - 1)) == (int(n), CPU)
    elif int(n) <= gpus:
        assert (processes(n), pick_device(n, int(n) - 1)) == (int(n), torch.device("cuda", int(n) - 1))
    else:
        with pytest.raises(ConfigError, match=rf"this host has {gpus} CUDA device"):
            processes(n)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "", "gpu", "-2", "1.0", "cuda:0", "²", None, [2]])
def test_wrong_devices(gpus, wrong):
    with pytest.raises(ConfigError, match="expected 'auto', 'cpu', 'cuda', or a number"):
        processes(wrong)
    with pytest.raises(ConfigError, match="expected 'auto'"):
        pick_device(wrong)


@pytest.mark.parametrize("rank", [-1, 8])
def test_process_without_a_gpu_of_its_own(gpus, rank):
    if not gpus:
        return
    with pytest.raises(ConfigError, match=rf"process {rank} of this host has no device .* {gpus} CUDA"):
        pick_device("auto", rank)
