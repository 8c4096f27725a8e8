"""What the launched processes of test_distributed do; a spawned process imports it."""

import os
import signal
import time

import torch

from glacier_nb.parallel.launch import introduce, tell
from glacier_nb.parallel.ranks import ranks_here


def answer(cfg, name: str) -> dict:
    "Who the rank is; the later ranks answer first."
    ranks = ranks_here()
    for i in range(3):
        tell((name, ranks.rank, i))
    time.sleep(0.3 * (ranks.size - 1 - ranks.rank))
    return introduce(cfg) | {"name": name, "pid": os.getpid(), "all": ranks.objects(10 * ranks.rank)}


def _wait_for_ever() -> None:
    "What rank 0 does while rank 1 dies: wait for it in a sum."
    ranks_here().sum(torch.ones(()))


def _die_after_all_are_here() -> bool:
    "True for the rank that is to die now; it says when."
    ranks_here().barrier()
    if ranks_here().rank == 1:
        tell(time.time())
    return ranks_here().rank == 1


def fail(cfg) -> None:
    "Rank 1 raises an error that a user can mend."
    if _die_after_all_are_here():
        raise FileNotFoundError(2, "No such file", "tile.tif")
    _wait_for_ever()


class OddError(Exception):
    "An error that does not survive the way to another process."

    def __init__(self, tile, reason):
        super().__init__(f"{tile}: {reason}")


def fail_oddly(cfg) -> None:
    if _die_after_all_are_here():
        raise OddError("tile_3", "odd")
    _wait_for_ever()


def be_killed(cfg) -> None:
    if _die_after_all_are_here():
        os.kill(os.getpid(), signal.SIGKILL)
    _wait_for_ever()


def leave(cfg) -> None:
    if _die_after_all_are_here():
        os._exit(3)
    _wait_for_ever()
