"""What the tests of scenes and maps share: a small scene, a network, and the map of the one by the other."""

import pytest
import torch
from map_workers import OPTIONS, make_member, make_scene

from glacier_nb.prediction.maps import map_scene


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene():
    return make_scene()


@pytest.fixture(scope="module")
def member(scene):
    return make_member(scene)


@pytest.fixture(scope="module")
def written(scene, member, tmp_path_factory):
    return map_scene([member], scene, tmp_path_factory.mktemp("maps") / "map.tif", **OPTIONS)
