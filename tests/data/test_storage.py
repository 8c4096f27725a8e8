"""Tiles on disk: the same numbers as in memory, changed and damaged files, many processes, few open files."""

import multiprocessing
import os
import pickle
import resource
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from glacier_nb.checks import labels as labels_module
from glacier_nb.checks import split as checks_split
from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.config.training import TrainConfig
from glacier_nb.data import storage as storage
from glacier_nb.data.storage import _chosen_store, _memory_limit, run_tiles
from glacier_nb.demo.tiles import _write_tile
from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BINARY_CODES, IGNORE
from glacier_nb.sampling.loader import CropLoader
from glacier_nb.tiles import lazy as lazy_module
from glacier_nb.tiles import read as read_module
from glacier_nb.tiles import splits as splits_module
from glacier_nb.tiles.index import TileFiles
from glacier_nb.tiles.labels import LabelCodes
from glacier_nb.tiles.lazy import _read, open_tiles
from glacier_nb.tiles.read import describe, read_tiles
from glacier_nb.tiles.splits import (
    _leakage_audit,
    _near_box,
    _near_tiles,
    _with_transforms,
    fold_table,
    spatial_folds,
    split,
)
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import prepare_data, run_loss, run_network, run_sampler

SIDE = 48
CFG = TrainConfig(
    crop_size=32, samples_per_epoch=40, batch_size=8, n_folds=3, glcm_window=5, class_weights="inverse"
)


def write_folder(folder, rows=3, columns=3, side=SIDE):
    "A tile folder of noise with holes, neighbours alike."
    rng = np.random.default_rng(rows * columns)
    folder.mkdir()
    for k in range(rows * columns):
        dn = rng.normal(20000, 4000, (5, side, side)).round().clip(1) * (rng.random((side, side)) > 0.1)
        _write_tile(folder, *divmod(k, columns), dn, rng.integers(0, 4, (side, side)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiles") / "demo")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "Each test begins with an empty cache."
    monkeypatch.setenv("GLACIER_NB_CACHE", str(tmp_path / "cache"))
    _read.cache_clear()
    return tmp_path / "cache"


def disk(cfg=CFG):
    return replace(cfg, tile_store="disk")


def same_tiles(a, b):
    "Whether two lists hold the same tiles."
    for x, y in zip(a, b, strict=True):
        assert (x.id, x.shape, x.crs, x.classes, x.transform) == (
            y.id,
            y.shape,
            y.crs,
            y.classes,
            y.transform,
        )
        for name in ("bands", "valid", "label"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
            assert getattr(x, name) is None or getattr(x, name).dtype == getattr(y, name).dtype
        np.testing.assert_array_equal(x.class_counts(), y.class_counts())
        for name in ("labelled", "codes", "files", "bands_digest", "valid_fraction", "class_fractions"):
            assert getattr(x, name) == getattr(y, name), name
    return True


def same_sets(a, b):
    "Whether two tile sets hold the same numbers."
    assert (a.ids, a.classes, a.stats, a.shapes, a.nbytes) == (b.ids, b.classes, b.stats, b.shapes, b.nbytes)
    for i in range(len(a)):
        for place in ((0, 0, a.shapes[i]), (-7, 30, 40), (5, 3, 20), (-100, -100, 200)):
            x, y = a.crop(i, *place), b.crop(i, *place)
            assert x.keys() == y.keys()
            for name in x:
                np.testing.assert_array_equal(x[name], y[name])
                assert x[name].dtype == y[name].dtype
    return True


def recode(folder, change, nodata=0):
    "Write the labels of a folder anew."
    for path in (folder / "label").iterdir():
        with rasterio.open(path, "r+") as f:
            f.write(change(f.read(1)), 1)
            f.nodata = nodata


@pytest.mark.parametrize("classes", ["auto", "four", "binary"])
@pytest.mark.parametrize("codes", ["four", "first phase", "indices"])
def test_lazy_tiles_are_the_tiles(tmp_path, codes, classes):
    folder = write_folder(tmp_path / "demo", 1, 2)
    index = {0: 0, 85: 1, 170: 2, 255: 3}
    if codes == "first phase" and classes != "four":
        recode(folder, lambda a: np.where(a > 0, BINARY_CODES[1], 0))
    if codes == "indices":
        recode(folder, lambda a: np.vectorize(index.get)(a), nodata=None)
    assert same_tiles(open_tiles(folder, classes), read_tiles(folder, classes))
    assert same_tiles(open_tiles(folder, classes), read_tiles(folder, classes))  # from the cache


def test_chosen_ids_and_folders_without_labels(tmp_path):
    folder = write_folder(tmp_path / "demo", 1, 3)
    assert same_tiles(open_tiles(folder, ids=["01_02"]), read_tiles(folder, ids=["01_02"]))
    (folder / "label").rename(tmp_path / "label")
    bare = open_tiles(folder)
    assert same_tiles(bare, read_tiles(folder))
    assert not bare[0].classes
    assert not bare[0].labelled


def test_errors_are_those_of_reading(tmp_path):
    folder = write_folder(tmp_path / "demo", 1, 3)
    recode(folder, lambda a: np.where(a == 85, 7, a))
    with pytest.raises(TileError, match="unknown label codes 7") as error:
        open_tiles(folder)
    with pytest.raises(TileError) as expected:
        read_tiles(folder)
    assert str(error.value) == str(expected.value)
    recode(folder, lambda a: np.where(a == 7, 85, a))
    band = next((folder / "Band4").iterdir())
    band.write_bytes(band.read_bytes()[:3000])
    with pytest.raises(TileError, match="a complete GeoTIFF"):
        open_tiles(folder)
    with pytest.raises(ValueError, match='"auto", "four" or "binary"'):
        open_tiles(folder, "all")


def test_pixels_cannot_be_changed_by_accident(folder):
    with pytest.raises(ValueError, match="read-only"):
        open_tiles(folder)[0].label[0, 0] = 1


def test_a_changed_file_is_noticed_whatever_its_date(tmp_path):
    folder = write_folder(tmp_path / "demo", 1, 2)
    old = open_tiles(folder)
    path = old[0].files.bands[0]
    before = path.stat()
    with rasterio.open(path, "r+") as f:
        f.write(f.read(1) + 3, 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TileError, match="files that changed after the tiles were opened"):
        _ = old[0].bands
    new = open_tiles(folder)
    assert same_tiles(new, read_tiles(folder))
    assert new[0].key != old[0].key
    assert new[1].key == old[1].key


def test_damaged_cache_files_are_written_again(folder, own_cache):
    open_tiles(folder)
    files = sorted((own_cache / "tiles").iterdir())
    assert len(files) == 18  # label codes and properties of nine tiles
    for k, path in enumerate(files):
        path.write_text(["", "{", "\0"][k % 3])
    assert same_tiles(open_tiles(folder), read_tiles(folder))


def test_boxes_add_up_and_do_not_touch_what_they_came_from(folder):
    lazy, held = open_tiles(folder)[4], read_tiles(folder)[4]
    boxes = [(0, 10, 0, SIDE), (5, 20, 40, SIDE)]
    cut = lazy.ignore_boxes(boxes[:1]).ignore_boxes(boxes[1:])
    expected = held.ignore_boxes(boxes)
    np.testing.assert_array_equal(cut.label, expected.label)
    np.testing.assert_array_equal(cut.class_counts(), expected.class_counts())
    assert cut.class_fractions == expected.class_fractions
    np.testing.assert_array_equal(lazy.label, held.label)
    assert (expected.label[:10] == IGNORE).all()
    assert (held.label[:10] != IGNORE).any()


@pytest.mark.parametrize("buffer", [1, 8, 32])
def test_folds_split_and_audit_are_those_of_memory(folder, buffer):
    lazy, held = open_tiles(folder), read_tiles(folder)
    folds = spatial_folds(held, 3)
    assert spatial_folds(lazy, 3) == folds
    assert [t.marks.to_text() for t in lazy] == [t.marks.to_text() for t in held]
    for fold in range(3):
        parts = [split(tiles, fold, 3, buffer, folds) for tiles in (lazy, held)]
        for a, b in zip(*parts, strict=True):
            assert same_tiles(a, b)
        for least in (buffer, buffer + 5):
            a, b = (_leakage_audit(*part, least) for part in parts)
            assert a.equals(b)
            assert a.empty == (least == buffer)
    same = [replace(lazy[0], files=replace(lazy[0].files, id="copy"))]
    assert _leakage_audit(lazy[:1], same).kind.tolist() == ["same pixels"]


def test_tiles_without_georeference_are_with_transforms_by_their_ids(folder):
    lazy, held = open_tiles(folder), read_tiles(folder)
    bare = [[replace(t, crs=None, transform=Affine.identity()) for t in tiles] for tiles in (lazy, held)]
    assert [t.transform for t in _with_transforms(bare[0])] == [
        t.transform for t in _with_transforms(bare[1])
    ]
    assert spatial_folds(bare[0], 3) == spatial_folds(held, 3)


def test_near_tiles_misses_none_also_in_other_coordinate_systems(folder):
    tiles = read_tiles(folder)
    box = rasterio.warp.calculate_default_transform
    moved = []
    for k, t in enumerate(tiles):
        crs = CRS.from_epsg([32643, 32644, 4326][k % 3])
        bounds = rasterio.transform.array_bounds(SIDE, SIDE, t.transform)
        moved.append(replace(t, crs=crs, transform=box(t.crs, crs, SIDE, SIDE, *bounds)[0]))
    for others in (tiles, moved):
        for buffer in (0, 3, 40):
            for t, near in zip(moved, _near_tiles(moved, others, buffer), strict=True):
                assert {k for k, o in enumerate(others) if _near_box(t, o, buffer)} <= set(near.tolist())


@pytest.mark.parametrize("normalisation", ["standard", "robust"])
@pytest.mark.parametrize("boundary", [True, False])
def test_a_run_on_disk_sees_the_same_numbers(folder, normalisation, boundary):
    weights = {} if boundary else {"boundary_weight": 0.0}
    cfg = replace(CFG, normalisation=normalisation, **weights)
    a, b = prepare_data(cfg, read_tiles(folder)), prepare_data(disk(cfg), open_tiles(folder))
    again = prepare_data(disk(cfg), open_tiles(folder))
    for other in (b, again):
        assert (a.stats, a.classes) == (other.stats, other.classes)
        assert same_sets(a.train, other.train)
        assert same_sets(a.val, other.val)
        assert same_tiles(a.train_tiles, other.train_tiles)
        assert same_tiles(a.val_tiles, other.val_tiles)
    for kind in ("random", "weighted", "pixel"):
        given = replace(cfg, sampler=kind, interface_fraction=0.3 if kind == "pixel" else 0.0)
        drawn = [run_sampler(given, d.train).positions(3) for d in (a, b)]
        np.testing.assert_array_equal(*drawn)
        batches = [
            list(CropLoader(d.train, [drawn[0][:20], drawn[0][20:]], 32, w)) for d, w in ((a, 0), (b, 2))
        ]
        for x, y in zip(*batches, strict=True):
            assert all((x[k] == y[k]).all() for k in x)
    assert run_loss(cfg, a).state_dict().keys() == run_loss(cfg, b).state_dict().keys()


def test_memory_and_disk_can_be_mixed(folder):
    expected = prepare_data(CFG, read_tiles(folder))
    for cfg, tiles in ((disk(), read_tiles(folder)), (replace(CFG, tile_store="memory"), open_tiles(folder))):
        assert same_sets(prepare_data(cfg, tiles).train, expected.train)


def test_the_second_start_reads_no_tile(folder, monkeypatch, own_cache):
    first = prepare_data(disk(), open_tiles(folder))
    written = {p: p.stat().st_mtime_ns for p in own_cache.rglob("*") if p.is_file()}
    _read.cache_clear()

    def never(*_):
        raise AssertionError("a tile was read")

    monkeypatch.setattr(TileFiles, "read", never)
    monkeypatch.setattr(LabelCodes, "count", never)
    second = prepare_data(disk(), open_tiles(folder))
    assert same_sets(first.train, second.train)
    assert run_loss(CFG, second)
    assert {p: p.stat().st_mtime_ns for p in own_cache.rglob("*") if p.is_file()} == written


@pytest.mark.parametrize("damage", ["cut off", "empty", "gone", "another array"])
def test_damaged_arrays_are_written_again(folder, own_cache, damage):
    first = prepare_data(disk(), open_tiles(folder))
    expected = prepare_data(CFG, read_tiles(folder))
    for k, path in enumerate(sorted((own_cache / "arrays").iterdir())):
        if k % 3:
            continue
        if damage == "gone":
            path.unlink()
        elif damage == "another array":
            np.save(path, np.zeros((3, 3)))
        else:
            path.write_bytes(path.read_bytes()[: 200 * (damage == "cut off")])
    with pytest.raises(TileError, match="To fix: start again"):
        same_sets(first.train, expected.train)
    assert same_sets(prepare_data(disk(), open_tiles(folder)).train, expected.train)


def _build(folder, cache, start, out):
    "A process that prepares the data of a run."
    os.environ["GLACIER_NB_CACHE"] = cache
    start.wait()
    out.put(prepare_data(disk(), open_tiles(folder)))


def test_processes_may_fill_the_cache_at_the_same_time(folder, tmp_path, own_cache):
    context = multiprocessing.get_context("forkserver")
    start, out = context.Event(), context.Queue()
    builders = [
        context.Process(target=_build, args=(folder, str(own_cache), start, out), daemon=True)
        for _ in range(3)
    ]
    for b in builders:
        b.start()
    start.set()
    made = [out.get(timeout=120) for _ in builders]
    for b in builders:
        b.join(30)
    assert [b.exitcode for b in builders] == [0, 0, 0]
    expected = prepare_data(CFG, read_tiles(folder))
    for data in made:
        assert same_sets(data.train, expected.train)
    assert not [p for p in own_cache.rglob("*") if p.name.endswith(".tmp")]


def open_files() -> int:
    "How many files this process has open."
    return len(list(Path("/proc/self/fd").iterdir()))


def in_a_process(target, *args):
    "What a function sends through a pipe, its last argument, from a process of its own."
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, send))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return receive.recv()


def _few_files(folder, cache, out):
    "A process that may open 64 files, and a run with hundreds of arrays."
    os.environ["GLACIER_NB_CACHE"] = cache
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    given = {"tile_store": "disk", "crop_size": 32, "samples_per_epoch": 300, "include_glcm": False}
    cfg, before = TrainConfig(data_dir=str(folder), **given), open_files()
    data = prepare_data(cfg, run_tiles(cfg))
    prepared, seen = open_files(), set()
    for _ in CropLoader(data.train, np.array_split(run_sampler(cfg, data.train).positions(0), 30), 32, 2):
        seen.add(open_files())
    arrays = [data.train.images[i][...] for i in range(len(data.train))]
    assert len(arrays) == len(data.train)
    out.send((len(data.train) + len(data.val), prepared - before, max(seen) - before, open_files() - before))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_many_tiles_need_few_open_files(tmp_path, own_cache):
    folder = write_folder(tmp_path / "many", 8, 10)
    tiles, prepared, most, after = in_a_process(_few_files, folder, str(own_cache))
    assert 60 < tiles <= 80  # and four files with arrays for each
    assert prepared <= 4  # of libraries, such as the database of coordinate systems
    assert most <= prepared + 6
    assert after <= prepared


def test_the_data_of_a_run_can_be_pickled(folder):
    data = prepare_data(disk(), open_tiles(folder))
    other = pickle.loads(pickle.dumps(data))
    assert same_sets(data.train, other.train)
    assert same_tiles(data.val_tiles, other.val_tiles)


def _peaks(folders, cache, out):
    "Peak memory of a process that opens and crops a few and many tiles, twice each; sizes of their arrays."
    os.environ["GLACIER_NB_CACHE"] = cache
    peaks, arrays = {}, {}
    for n, folder in folders.items():
        cfg = replace(disk(), data_dir=str(folder))
        for start in ("first", "second"):
            _read.cache_clear()
            tracemalloc.start()
            data = prepare_data(cfg, run_tiles(cfg))
            positions = run_sampler(cfg, data.train).positions(0)
            for _ in CropLoader(data.train, np.array_split(positions, 5), 32):
                pass
            peaks[n, start] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        arrays[n] = data.train.nbytes + data.val.nbytes
    out.send((peaks, arrays))


def test_memory_does_not_grow_with_the_tiles(tmp_path, own_cache):
    "In a process of its own, as what other tests leave behind changes the peaks."
    folders = {n: write_folder(tmp_path / f"of{n * 9}", n, 9, 64) for n in (1, 6)}
    peaks, arrays = in_a_process(_peaks, folders, str(own_cache))
    assert peaks[6, "second"] - peaks[1, "second"] < (arrays[6] - arrays[1]) / 15  # some KB a tile
    assert peaks[6, "first"] < 0.7 * arrays[6]  # half of that is the distance map of the probe


def test_a_run_reads_its_files_and_audits_its_split_once(folder, monkeypatch):
    calls = Counter()

    def count(name, *modules):
        "Count the calls of a function by its name, and of `read_raster` by the file."
        real = getattr(modules[0], name)

        def counted(first, *args, **kwargs):
            calls[str(first) if name == "read_raster" else name] += 1
            return real(first, *args, **kwargs)

        for module in modules:
            monkeypatch.setattr(module, name, counted)

    count("read_raster", read_module, labels_module)
    count("_leakage_audit", splits_module)
    count("spatial_folds", splits_module, checks_split)
    cfg = replace(CFG, data_dir=str(folder), architecture="scratch", encoder_weights=None)
    tiles = run_tiles(cfg)
    data = prepare_data(cfg, tiles)
    assert len(describe(tiles)) == 9
    assert len(fold_table(tiles, data.split.folds)) == 3
    report = diagnose(cfg, learner=Learner(cfg, data, run_network(cfg, data)[0]), live=False)
    assert {"label files", "labels in memory", "split"} <= {check.name for check in report.checks}
    assert set(calls.values()) == {1}
    assert len(calls) == 9 * 6 + 2  # five bands and a label each, one audit, one set of folds


def test_auto_chooses_by_size(folder, monkeypatch):
    cfg = replace(CFG, data_dir=str(folder))
    assert not isinstance(run_tiles(cfg)[0], lazy_module.LazyTile)
    needed = 9 * SIDE * SIDE * storage._bytes_per_pixel(cfg)
    for limit, kind in ((4 * needed, "memory"), (4 * needed - 4, "disk")):
        monkeypatch.setattr(storage, "_memory_limit", lambda limit=limit: limit)
        assert _chosen_store(cfg, 9 * SIDE * SIDE) == kind
        tiles = run_tiles(cfg)
        assert isinstance(tiles[0], lazy_module.LazyTile) == (kind == "disk")
        assert isinstance(prepare_data(cfg, tiles).train.images[0], np.ndarray) == (kind == "memory")


def test_bytes_per_pixel_is_the_memory_of_a_run(folder):
    tiles = read_tiles(folder)
    data = prepare_data(CFG, tiles)
    held = sum(t.bands.nbytes + t.valid.nbytes + t.label.nbytes for t in tiles)
    pixels = 9 * SIDE * SIDE
    assert storage._bytes_per_pixel(CFG) * pixels == held + data.train.nbytes + data.val.nbytes


def test_memory_limit_of_control_groups_and_processes(monkeypatch, tmp_path):
    whole = _memory_limit()
    (tmp_path / "a").write_text("max\n")
    (tmp_path / "b").write_text("1000000\n")
    monkeypatch.setattr(storage, "_control_groups", lambda: [tmp_path / "a"])
    assert _memory_limit() >= whole
    monkeypatch.setattr(storage, "_control_groups", lambda: [tmp_path / n for n in ("a", "b", "missing")])
    assert _memory_limit() == 1_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _memory_limit() == 250_000
