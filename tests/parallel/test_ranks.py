"""Ranks: shards are the batch, and two or three processes are one, in values and in gradients."""

import os
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from glacier_nb.parallel.launch import RankDied, run_ranks
from glacier_nb.parallel.ranks import Ranks, Shard

SIZES = (3, 0, 4)  # rows of three ranks
ZEROS = torch.zeros(2)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shards_are_the_batch_in_order(n, size):
    shards = [Ranks(rank, size).shard(n) for rank in range(size)]
    rows = np.arange(n)
    assert [s.take(rows).tolist() for s in shards] == [p.tolist() for p in np.array_split(rows, size)]
    assert all(len(s) == len(s.take(rows)) for s in shards)
    assert all(s.total == n for s in shards)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_take_from_any_axis_of_arrays_and_tensors(dim):
    shard = Ranks(1, 2).shard(5)
    x = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = x.narrow(dim, 3, 2)
    assert torch.equal(shard.take(x, dim), expected)
    np.testing.assert_array_equal(shard.take(x.numpy(), dim), expected.numpy())


def test_a_shard_of_another_batch_is_an_error():
    with pytest.raises(ValueError, match=r"found 4 rows on axis 1 of \(2, 4\), expected the 5 of the whole"):
        Ranks(0, 2).shard(5).take(torch.zeros(2, 4), 1)
    assert Shard.of(4, None) == Shard(0, 4, 4)
    assert Shard.of(0, Shard(2, 2, 9)) == Shard(2, 2, 9)  # an empty shard is one, and not none
    with pytest.raises(ValueError, match="found 3 rows, expected the 2 of Shard"):
        Shard.of(3, Shard(0, 2, 9))


@pytest.mark.parametrize("numbers", [(-1, 2, 3), (2, 1, 3), (0, 4, 3)])
def test_wrong_shards(numbers):
    with pytest.raises(ValueError, match="expected 0 <= start <= stop <= total"):
        Shard(*numbers)


@pytest.mark.parametrize("numbers", [(-1, 2), (2, 2), (0, 0)])
def test_wrong_ranks(numbers):
    with pytest.raises(ValueError, match="expected a rank from 0 to size - 1"):
        Ranks(*numbers)


def test_alone_everything_is_the_identity():
    x = torch.zeros(3, requires_grad=True)
    assert Ranks.here() == Ranks() == Ranks()
    assert Ranks().sum(x) is x
    assert Ranks().gather(x) is x
    assert Ranks().gather_objects("value") == ["value"]
    assert Ranks().broadcast("value") == "value"
    assert Ranks().any([True, False, 1]) == [True, False, True]
    Ranks().barrier()
    assert not dist.is_initialized()


def every_method(ranks):
    "The result of each method on this rank."
    mine = torch.arange(4 * sum(SIZES), dtype=torch.float64).reshape(-1, 2, 2)
    mine = mine[sum(SIZES[: ranks.rank]) :][: SIZES[ranks.rank]]
    along_last = ranks.gather(mine.movedim(0, -1), dim=-1)
    strided = torch.arange(6.0).reshape(2, 3).T * (ranks.rank + 1)
    return {
        "here": Ranks.here() == ranks,
        "sum": ranks.sum(strided),
        "whole numbers": ranks.sum(torch.tensor(2**40 + ranks.rank)),
        "gather": ranks.gather(mine),
        "along the last": torch.equal(along_last, ranks.gather(mine).movedim(0, -1)),
        "bool": ranks.gather(torch.tensor([ranks.rank == 1])),
        "objects": ranks.gather_objects({"rank": ranks.rank, "array": np.full(ranks.rank, 1)}),
        "broadcast": ranks.broadcast(f"from {ranks.rank}"),
        "any": ranks.any([ranks.rank == 2, False, True, ranks.rank == 0]),
        "none": ranks.any([]),
    }


def slopes(ranks):
    "Gradient of sum and gather, and their second derivatives, in this rank's number."
    x = torch.tensor([2.0 + ranks.rank], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1, 1 + ranks.size)
    cube, line = ranks.sum(x**2) ** 2, (ranks.gather(x) * weights).sum()
    (first,) = torch.autograd.grad(cube, x, create_graph=True)
    return first.detach(), torch.autograd.grad(first, x)[0], torch.autograd.grad(line, x)[0]


class TanhNetwork(torch.nn.Module):
    "A network for a loss that is not a mean over rows."

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 1, dtype=torch.float64)
        torch.nn.init.constant_(self.line.weight, 0.5)
        torch.nn.init.constant_(self.line.bias, -0.1)

    def forward(self, x):
        return self.line(x).tanh()


def ratio(out, ranks):
    "Variance over mean square, and the largest value, of the whole batch."
    n, total, squares = ranks.sum(torch.stack([torch.ones_like(out).sum(), out.sum(), out.square().sum()]))
    return 1 - total**2 / (n * squares) + ranks.gather(out).max()


def under_ddp(ranks, x):
    "Parameters' gradients with PyTorch's own DistributedDataParallel."
    model = TanhNetwork()
    trained = DistributedDataParallel(model) if ranks.size > 1 else model
    loss = ratio(trained(ranks.shard(len(x)).take(x)), ranks)
    loss.backward()
    return loss.detach(), model.line.weight.grad, model.line.bias.grad


def whole_batch():
    "Seven rows."
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def changed(ranks, x):
    "A tensor that came from outside, with the rank added in place."
    x += ranks.rank
    ranks.barrier()
    return x


def all_at_once(ranks, x, zeros):
    "Everything that the tests compute on several processes, as starting them takes longest."
    return {
        "methods": every_method(ranks),
        "slopes": slopes(ranks),
        "ddp": under_ddp(ranks, x),
        "shared": ranks.gradient(ratio_and_more, x[:, :1]),
        "changed": changed(ranks, zeros),
        "threads": torch.get_num_threads(),
    }


def ratio_and_more(x, ranks):
    "A scalar and a second result."
    return ratio(x, ranks), {"rank": ranks.rank}


@pytest.fixture(scope="module")
def three():
    "The results of three processes."
    return run_ranks(all_at_once, 3, whole_batch(), ZEROS)


def test_methods_of_three_processes(three):
    rows = torch.arange(4 * sum(SIZES), dtype=torch.float64).reshape(-1, 2, 2)
    for found in (result["methods"] for result in three):
        assert found["here"]
        assert torch.equal(found["sum"], torch.arange(6.0).reshape(2, 3).T * 6)
        assert found["whole numbers"] == 3 * 2**40 + 3
        assert torch.equal(found["gather"], rows)
        assert found["along the last"]
        assert found["bool"].tolist() == [False, True, False]
        assert [o["rank"] for o in found["objects"]] == [0, 1, 2]
        assert [len(o["array"]) for o in found["objects"]] == [0, 1, 2]
        assert found["broadcast"] == "from 0"
        assert found["any"] == [True, False, True, True]
        assert found["none"] == []


def test_slopes_are_those_of_the_sum_of_all_losses(three):
    total = sum(
        x**2 for x in (2, 3, 4)
    )  # each of the three losses is total²; the gradient of each is 4 total x
    for rank, (first, second, line) in enumerate(result["slopes"] for result in three):
        x = 2 + rank
        assert first.item() == 3 * 4 * total * x
        assert second.item() == 3 * (8 * x * sum((2, 3, 4)) + 4 * total)
        assert line.item() == 3 * (rank + 1)


def test_ddp_of_three_is_one_process(three):
    expected = under_ddp(Ranks(), whole_batch())
    for result in three:
        assert_close(result["ddp"], expected, atol=1e-14, rtol=1e-12)


def test_shared_gradient_is_that_of_one_process(three):
    x = whole_batch()[:, :1]
    (value, _), slope = Ranks().gradient(ratio_and_more, x)
    for rank, result in enumerate(three):
        (found, more), found_slope = result["shared"]
        assert more == {"rank": rank}
        assert_close((found, found_slope), (value, slope), atol=1e-14, rtol=1e-12)
    leaf = x.clone().requires_grad_()
    ratio(leaf, Ranks()).backward()
    assert torch.equal(leaf.grad, slope)


def test_each_process_has_its_own_copies(three):
    assert [result["changed"].tolist() for result in three] == [[0, 0], [1, 1], [2, 2]]
    assert not ZEROS.any()


def test_threads_are_divided_among_processes(three):
    assert [result["threads"] for result in three] == [max(1, torch.get_num_threads() // 3)] * 3


def fail(ranks, how):
    "One rank fails, the other waits for it."
    if ranks.rank == 1:
        if how == "raise":
            raise ValueError("this is why")
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier()


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [("raise", ValueError, "this is why"), ("kill", RankDied, "SIGKILL|Connection")],
)
def test_a_failing_rank_ends_all_with_its_traceback(how, error, match):
    start = time.monotonic()
    with pytest.raises(error, match=match) as raised:
        run_ranks(fail, 2, how)
    assert time.monotonic() - start < 60
    if how == "raise":
        assert "rank 1 of 2 failed" in str(raised.value.__cause__)
        assert "in fail\n" in str(raised.value.__cause__)
