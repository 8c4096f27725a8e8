"""Windows on the workers of a dask cluster: the same pixels, dead workers, errors, several scenes at once."""

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from map_workers import OPTIONS, ArrayScene, make_member

from glacier_nb.config.fields import ConfigError
from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.prediction import windows
from glacier_nb.prediction.maps import map_scene
from glacier_nb.prediction.windows import MapCause, MapError, SceneWindows

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
utils = pytest.importorskip("distributed.utils")
CLUSTER = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def client():
    "Two workers in this process."
    with distributed.LocalCluster(processes=False, **CLUSTER) as local, distributed.Client(local) as client:
        yield client


def assert_same(a, b):
    for name in ("classes", "confidence", "probabilities"):
        with rasterio.open(getattr(a, name)) as f, rasterio.open(getattr(b, name)) as g:
            np.testing.assert_array_equal(f.read(), g.read(), err_msg=name)


@dataclass
class FrailScene(ArrayScene):
    "A scene whose first reader of a box dies, or that cannot be read there."

    mark: str = ""  # file that says that a process has died
    dies: bool = False
    lacks: int = -1  # first row of a box that is missing

    def read(self, box):
        if self.dies and box[0] == 32:
            try:
                open(self.mark, "x").close()
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if box[0] == self.lacks:
            raise TileError("x.tif", "no such file", "a file", "give it", cause=TileCause.LINK)
        return super().read(box)


def frail(scene, **options):
    return FrailScene(**vars(scene) | options)


@pytest.mark.slow
def test_processes_give_the_same_pixels_and_one_of_them_dies(written, scene, member, tmp_path):
    utils._forkserver_preload_set = True  # see `fork_server`
    method = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    with method, distributed.LocalCluster(**CLUSTER) as local, distributed.Client(local) as client:
        killer = frail(scene, dies=True, mark=str(tmp_path / "died"))
        result = map_scene([member], killer, tmp_path / "a.tif", client=client, **OPTIONS)
    assert (tmp_path / "died").exists()
    assert (result.computed, result.windows) == (written.windows, written.windows)
    assert_same(result, written)


def test_texture_an_ensemble_and_the_map_that_a_client_finds(scene, client, tmp_path):
    members = [make_member(scene, 0, texture=True), make_member(scene, 1)]
    here = map_scene(members, scene, tmp_path / "a.tif", **OPTIONS)
    there = map_scene(members, scene, tmp_path / "b.tif", client=client, **OPTIONS)
    assert_same(here, there)
    assert map_scene(members, scene, tmp_path / "a.tif", client=client, **OPTIONS).found
    assert not windows._payloads
    assert not windows._jobs


def test_an_error_in_a_window_names_it_and_the_map_goes_on(written, scene, member, client, tmp_path):
    lacking = frail(scene, lacks=32)
    with pytest.raises(MapError, match=r"rows 32 to 96, columns 0 to 64 of scene.*TileError.*same path") as e:
        map_scene([member], lacking, tmp_path / "a.tif", client=client, **OPTIONS)
    assert e.value.cause is MapCause.WORKER
    assert (type(e.value.__cause__), e.value.__cause__.cause) == (TileError, TileCause.LINK)
    assert not windows._payloads
    result = map_scene([member], scene, tmp_path / "a.tif", client=client, **OPTIONS)
    assert result.computed == result.windows - 5
    assert_same(result, written)


def test_several_scenes_at_once_share_a_network(written, scene, member, client, tmp_path, monkeypatch):
    unpacked, loaded = windows._unpacked, []

    def counting(data):
        loaded.append(unpacked(data))
        return loaded[-1]

    monkeypatch.setattr(windows, "_unpacked", counting)
    barrier = []

    def one(name):
        barrier.append(name)
        return map_scene([member], scene, tmp_path / f"{name}.tif", client=client, **OPTIONS)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(one, "abc"))
    for result in results:
        assert_same(result, written)
    assert sum(isinstance(thing, SceneWindows) for thing in loaded) == 3
    assert not windows._payloads


def test_few_windows_are_under_way(scene, member, client):
    submitted, submit = [], client.submit
    counted = SceneWindows((member,), scene, window=64, overlap=32, client=client)
    parts = counted.parts()
    assert counted.placed[0].model is member.model
    client.submit = lambda *args, **options: submitted.append(args) or submit(*args, **options)
    try:
        next(parts)
        assert len(submitted) == 5  # two a thread, and the one that is taken
        parts.close()
    finally:
        del client.submit
    assert not windows._payloads


def test_a_worker_without_the_device_says_so(scene, member, client, monkeypatch):
    gpu = replace(member, device=torch.device("cuda"))
    monkeypatch.setattr(SceneWindows, "placed", (gpu,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = SceneWindows((member,), scene, window=192, overlap=0, client=client)
    with pytest.raises(MapError, match="same kind of device") as e:
        list(job.strips())
    assert isinstance(e.value.__cause__, ConfigError)


def test_precision_is_chosen_anew_for_another_kind_of_device():
    known = [("cuda", torch.float16, "auto"), ("cpu", torch.bfloat16, "bf16")]
    places = windows._places(known)
    assert places == [(torch.device("cpu"), torch.float32), (torch.device("cpu"), torch.bfloat16)]


def test_no_client_and_errors_that_travel(scene, member):
    with pytest.raises(MapError, match=r"client = 'tcp://x:8786'.*distributed\.Client") as e:
        SceneWindows((member,), scene, client="tcp://x:8786")
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.cause) == (str(e.value), MapCause.OPTIONS)


def test_a_scheduler_that_is_gone(scene, member):
    gone = SimpleNamespace(submit=lambda *args, **options: 1 / 0, status="closed")
    gone.register_plugin = raising(OSError("timed out"))
    job = SceneWindows((member,), scene, window=192, overlap=0, client=gone)
    vars(job)["placed"] = (member,)
    with pytest.raises(MapError, match=r"cannot be reached \(OSError: timed out\).*and a client again") as e:
        list(job.strips())
    assert e.value.cause is MapCause.WORKER
    gone.submit = raising(RuntimeError("closed"))
    with pytest.raises(MapError, match="cannot be reached"):
        _ = SceneWindows((member,), scene, client=gone).placed


def raising(error):
    def function(*args, **options):
        raise error

    return function


def test_each_error_has_its_fix():
    from distributed.comm import CommClosedError

    errors = {
        "a client again": (CommClosedError("closed"), distributed.CancelledError("key")),
        "same path": (FileNotFoundError("x"), TileError("x", "nothing", "a file", "give it")),
        "more memory": (distributed.KilledWorker("task", None, 3),),
        "log of the worker": (ZeroDivisionError(),),
    }
    for words, kinds in errors.items():
        for error in kinds:
            assert words in windows._fix(error)
