"""A contest of training loops on a machine that others may use too: short blocks in turn, medians, ratios.

Every block reports the time of the wall, of this process on all its cores, and of everybody else. Rounds in
which others were busy are left out where enough quiet ones remain.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import psutil

QUIET = 0.15  # cores that others may use in a quiet round
ENOUGH = 3  # quiet rounds that make a median


class Clock:
    "What passes between `start` and `stop`."

    def start(self) -> None:
        "Begin to count."
        self.begin = self.read()

    def stop(self) -> None:
        "Stop; `spent` holds seconds of the wall, of this process, of all others."
        wall, own, busy = (b - a for a, b in zip(self.begin, self.read(), strict=True))
        self.spent = {"wall": wall, "cpu": own, "others": max(busy - own, 0) / wall}

    @contextmanager
    def running(self) -> Iterator[None]:
        "Count what happens inside."
        self.start()
        yield
        self.stop()

    @staticmethod
    def read() -> tuple[float, float, float]:  # seconds: wall, this process, all processes
        "The three clocks."
        busy = psutil.cpu_times()
        idle = busy.idle + getattr(busy, "iowait", 0) + getattr(busy, "guest", 0)  # guest counts in user too
        return time.perf_counter(), time.process_time(), sum(busy) - idle - getattr(busy, "guest_nice", 0)


@dataclass(frozen=True)
class Contender:
    "A loop that can be run block by block."

    name: str
    block: Callable[[Clock], None]  # trains `steps` steps; starts and stops the clock


def contest(
    group: list[Contender],
    steps: int,  # optimizer steps in a block
    rounds: int,  # at most; each contender once in each
    seconds: float,  # of the wall, for everything; at least one round is run
) -> pd.DataFrame:  # a row a block: round, name, wall and cpu in ms a step, cores that others used
    "Let the contenders take turns; a first block of each imports, compiles and fills caches."
    rows, clock, begin = [], Clock(), time.perf_counter()
    for rival in group:
        rival.block(clock)
    for number in range(rounds):
        turn = time.perf_counter()
        for rival in group[number % len(group) :] + group[: number % len(group)]:
            rival.block(clock)
            spent = {key: clock.spent[key] * 1e3 / steps for key in ("wall", "cpu")}
            rows.append({"round": number, "name": rival.name, **spent, "others": clock.spent["others"]})
        now = time.perf_counter()
        if (now - begin) + (now - turn) > seconds:
            break
    return pd.DataFrame(rows)


def quiet_rounds(
    blocks: pd.DataFrame,  # from `contest`
) -> pd.DataFrame:
    "The blocks of the rounds in which others hardly ran; all of them where such rounds are too few."
    worst = blocks.groupby("round")["others"].max()
    quiet = worst.index[worst <= QUIET]
    return blocks[blocks["round"].isin(quiet)] if len(quiet) >= ENOUGH else blocks


def summary(
    blocks: pd.DataFrame,  # from `contest`
    reference: str,  # name of the contender that the others are divided by, round by round
) -> pd.DataFrame:  # a row a contender
    "Medians over rounds, and of the ratios within a round with their range."
    names = list(dict.fromkeys(blocks[blocks["round"] == 0].sort_index()["name"]))
    wall, cpu = (blocks.pivot(index="round", columns="name", values=key)[names] for key in ("wall", "cpu"))
    ratio, work = (times.div(times[reference], axis=0) for times in (wall, cpu))
    return pd.DataFrame(
        {
            "wall ms/step": wall.median(),
            "cpu ms/step": cpu.median(),
            "wall ratio": ratio.median(),
            "lowest": ratio.min(),
            "highest": ratio.max(),
            "cpu ratio": work.median(),
        }
    )


def loads(
    blocks: pd.DataFrame,  # from `contest`
) -> str:
    "How many rounds there were, and how quiet."
    quiet = quiet_rounds(blocks)
    rounds, used = blocks["round"].nunique(), quiet["round"].nunique()
    worst = quiet.groupby("round")["others"].max().max()
    if worst <= QUIET:
        return f"medians of {used} quiet rounds of {rounds}; others used at most {worst:.2f} cores"
    mean = quiet["others"].mean()
    return (
        f"medians of {used} rounds. NOT QUIET: others used {mean:.2f} cores on average, "
        "wall times are too long and ratios uncertain: run it again alone"
    )
