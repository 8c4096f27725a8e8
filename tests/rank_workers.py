"""Workers of parallel/test_launch: a launched process imports them."""

import os
import signal
import time

import torch

from glacier_nb.parallel.launch import _describe_rank, send_message
from glacier_nb.parallel.ranks import Ranks


def answer(cfg, name: str) -> dict:
    "A description of the rank; the later ranks answer first."
    ranks = Ranks.here()
    for i in range(3):
        send_message((name, ranks.rank, i))
    time.sleep(0.3 * (ranks.size - 1 - ranks.rank))
    return _describe_rank(cfg) | {
        "name": name,
        "pid": os.getpid(),
        "all": ranks.gather_objects(10 * ranks.rank),
    }


def _wait_for_ever() -> None:
    "What rank 0 does while rank 1 dies: waits for it in a sum."
    Ranks.here().sum(torch.ones(()))


def _dies_after_all_are_here() -> bool:
    "True for the rank that is to die now; it sends the time."
    Ranks.here().barrier()
    if Ranks.here().rank == 1:
        send_message(time.time())
    return Ranks.here().rank == 1


def fail(cfg) -> None:
    "Rank 1 raises an error that a user can fix."
    if _dies_after_all_are_here():
        raise FileNotFoundError(2, "No such file", "tile.tif")
    _wait_for_ever()


class OddError(Exception):
    "An error that cannot be unpickled in another process."

    def __init__(self, tile, reason):
        super().__init__(f"{tile}: {reason}")


def fail_oddly(cfg) -> None:
    if _dies_after_all_are_here():
        raise OddError("tile_3", "odd")
    _wait_for_ever()


def be_killed(cfg) -> None:
    if _dies_after_all_are_here():
        os.kill(os.getpid(), signal.SIGKILL)
    _wait_for_ever()


def leave(cfg) -> None:
    if _dies_after_all_are_here():
        os._exit(3)
    _wait_for_ever()


def wait_for_a_signal(cfg) -> None:
    "Both ranks send their process ids and wait."
    Ranks.here().barrier()
    send_message(os.getpid())
    while True:
        time.sleep(0.01)
