"""A program for any number of ranks: messages, groups, threads, and work that is not waited for."""

import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from lockstep.distributed.rendezvous import from_mpi

# A reduction of this many floats takes long enough to be seen under way.
LARGE = 16 * 2**20


def me() -> int:
    return dist.get_rank()


def size() -> int:
    return dist.get_world_size()


def total() -> int:
    """Return 1 + 2 + ... + size: the sum over the ranks of what each counts as its own."""
    return size() * (size() + 1) // 2


def own(count: int = 3) -> torch.Tensor:
    return torch.full((count,), float(me() + 1))


def tags_out_of_order() -> None:
    after, before = (me() + 1) % size(), (me() - 1) % size()
    sent = [dist.isend(torch.full((4,), 10.0 * me() + tag), after, tag=tag) for tag in range(5)]
    for tag in reversed(range(5)):
        received = torch.zeros(4)
        assert dist.recv(received, before, tag=tag) == before
        assert received.eq(10.0 * before + tag).all()
    for work in sent:
        work.wait()


def from_any_source() -> None:
    group = dist.new_group(list(reversed(range(size()))))
    for where in (None, group):
        if me() == 0:
            sources = set()
            for _ in range(size() - 1):
                received = torch.zeros(2, dtype=torch.int64)
                source = dist.recv(received, group=where)
                assert received.eq(source).all()
                sources.add(source)
            assert sources == set(range(1, size()))
        else:
            dist.send(torch.full((2,), me()), 0, group=where)
    dist.barrier()
    dist.destroy_process_group(group)


def rings() -> None:
    after, before = (me() + 1) % size(), (me() - 1) % size()
    for count in (1, 1000, 2**20):
        received = torch.zeros(2 * count)[::2]
        ops = [dist.P2POp(dist.isend, own(count), after), dist.P2POp(dist.irecv, received, before)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        assert received.eq(before + 1).all()


def wrong_length_of_message() -> None:
    if me() == 0:
        for count in (2, 5):
            dist.send(torch.ones(count), 1)
    if me() == 1:
        for _ in range(2):
            raises(Exception, lambda: dist.recv(torch.zeros(3), 0))
    dist.barrier()


def objects() -> None:
    mine = {"rank": me(), "tensor": own()}
    everyone: list = [None] * size()
    dist.all_gather_object(everyone, mine)
    assert [one["rank"] for one in everyone] == list(range(size()))
    gathered = [None] * size() if me() == 0 else None
    dist.gather_object(mine, gathered, 0)
    assert me() or [one["rank"] for one in gathered] == list(range(size()))
    listed = [mine, "a word"]
    dist.broadcast_object_list(listed, size() - 1)
    assert listed[0]["rank"] == size() - 1
    given: list = [None]
    dist.scatter_object_list(given, [f"for {rank}" for rank in range(size())], 0)
    assert given == [f"for {me()}"]


def sums_of_a_kind() -> None:
    tensor = own().double()
    dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.5))
    assert tensor.eq(total() / 2).all()
    for dtype in (torch.int32, torch.uint16, torch.bfloat16, torch.complex64):
        tensor = torch.full((3,), (me() + 1) * size()).to(dtype)
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        assert tensor.eq(torch.full((3,), total()).to(dtype)).all(), (dtype, tensor)
    # Rank 0 gets nothing of this one.
    given = [torch.full((rank,), float(me())) for rank in range(size())]
    received = torch.zeros(me())
    dist.reduce_scatter(received, given)
    assert received.eq(total() - size()).all()
    wide = torch.zeros(3 * size())
    part = wide[3 * me() : 3 * me() + 3].fill_(me())
    dist.all_gather_single(wide, part)
    assert wide.tolist() == [rank for rank in range(size()) for _ in range(3)]
    if size() > 1:
        numbers = torch.full((2, 3), 300.0, dtype=torch.float16)
        dist.all_reduce(numbers, dist.ReduceOp.PRODUCT)
        assert numbers.isinf().all()  # too large for the type, and no wider one shows


def sparse_sums() -> None:
    indices = torch.tensor([[0, me() + 1], [0, 0]])
    for hybrid in (False, True):
        values = torch.ones(2, 3) if hybrid else torch.ones(2)
        shape = (size() + 1, 2, 3) if hybrid else (size() + 1, 2)
        tensor = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
        dense = tensor.to_dense()
        dist.all_reduce(tensor)
        dist.all_reduce(dense)
        assert torch.equal(tensor.to_dense(), dense)


def wrong_use() -> None:
    some = torch.ones(4)
    for wrong in (
        lambda: dist.all_reduce(some, dist.ReduceOp.BAND),
        lambda: dist.all_reduce(torch.ones(2, dtype=torch.bool), dist.ReduceOp.AVG),
        lambda: dist.all_gather([torch.ones(3)] * size(), some),
        lambda: dist.all_gather([some] * (size() + 1), some),
        lambda: dist.all_gather_single(torch.ones(4 * size() + 1), some),
        lambda: dist.reduce_scatter_single(torch.ones(3), torch.ones(3 * size() + 1)),
        lambda: dist.all_to_all_single(some, some, [1] * (size() + 1), [1] * size()),
        lambda: dist.all_to_all_single(some, some, [4] * size(), [1] * size()),
        lambda: dist.all_reduce(some.to_sparse(), dist.ReduceOp.MAX),
        lambda: dist.isend(some, (me() + 1) % size(), tag=2**31 - 1),
        lambda: dist.irecv(some, (me() + 1) % size(), tag=-1),
    ):
        assert str(raises(ValueError, wrong)), "an error without a message"
    dist.all_reduce(some)  # and the group is as good as before
    assert some.eq(size()).all()


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    """Return the exception that a call raises, which must be of this kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def groups_in_different_orders() -> None:
    groups = [dist.new_group() for _ in range(4)]
    for _ in range(20):
        order = groups if me() % 2 else list(reversed(groups))
        tensors = [own(1000) for _ in order]
        works = [
            dist.all_reduce(tensor, group=group, async_op=True)
            for tensor, group in zip(tensors, order, strict=True)
        ]
        for work in works if me() % 3 else reversed(works):
            work.wait()
        assert all(tensor.eq(total()).all() for tensor in tensors)
    dist.barrier()
    for group in groups:
        dist.destroy_process_group(group)


def many_groups_alive() -> None:
    pairs = [[a, b] for a in range(size()) for b in range(a + 1, size())]
    groups = {tuple(pair): dist.new_group(pair) for pair in pairs * 6}
    for pair, group in groups.items():
        if me() in pair:
            tensor = own()
            dist.all_reduce(tensor, group=group)
            assert tensor.eq(sum(pair) + 2).all()
    dist.barrier()
    for pair, group in groups.items():
        if me() in pair:
            dist.destroy_process_group(group)


def groups_made_again_and_again() -> None:
    for _ in range(100):
        group = dist.new_group()
        tensor = own()
        dist.all_reduce(tensor, group=group, async_op=True).wait()
        assert tensor.eq(total()).all()
        dist.destroy_process_group(group)


def a_group_split_in_two() -> None:
    ranks = list(range(size()))
    group = dist.split_group(split_ranks=[ranks[::2], ranks[1::2]])
    tensor = own()
    dist.all_reduce(tensor, group=group)
    assert tensor.eq(sum(rank + 1 for rank in ranks[me() % 2 :: 2])).all()
    dist.destroy_process_group(group)


def python_threads() -> None:
    groups = [dist.new_group() for _ in range(3)]
    wrong = []

    def use(group: dist.ProcessGroup) -> None:
        for turn in range(50):
            tensor = own(1 + turn * 100)
            work = dist.all_reduce(tensor, group=group, async_op=turn % 2 == 0)
            if work is not None:
                work.wait()
            if not tensor.eq(total()).all():
                wrong.append(turn)

    threads = [threading.Thread(target=use, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for group in groups:
        dist.destroy_process_group(group)


def goes_on_while_the_rank_computes() -> None:
    tensor, matrix = own(LARGE), torch.ones(64, 64)
    work = dist.all_reduce(tensor, async_op=True)
    received = torch.zeros(LARGE)
    sent = dist.isend(own(LARGE), (me() + 1) % size())
    into = dist.irecv(received, (me() - 1) % size())
    multiplied = 0
    while not (work.is_completed() and sent.is_completed() and into.is_completed()):
        matrix @ matrix
        multiplied += 1
    assert multiplied > 0
    assert tensor.eq(total()).all()
    assert received.eq((me() - 1) % size() + 1).all()


def in_the_order_of_issue() -> None:
    tensor = own(1000)
    works = [dist.all_reduce(tensor, async_op=True) for _ in range(3)]
    dist.all_reduce(tensor)  # after them, though it is not for them that it was asked
    assert all(work.is_completed() for work in works)
    assert tensor.eq(total() * size() ** 3).all()


def tensors_that_nobody_keeps() -> None:
    tensor = own()
    work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    seen = weakref.ref(tensor)
    del tensor, work
    end = time.monotonic() + 10
    while seen() is not None and time.monotonic() < end:
        time.sleep(0.001)  # the group's thread may not have let go of it yet
    assert seen() is None


def futures() -> None:
    tensor = own()
    future = dist.all_reduce(tensor, async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2)
    assert halved.wait().eq(total() / 2).all()
    work = dist.all_reduce(own(), async_op=True)
    work.wait()
    assert work.is_success() and work.exception() is None
    assert work.result()[0].eq(total()).all()


def errors_in_a_work() -> None:
    if size() == 1:
        return
    if me() == 0:
        dist.send(torch.ones(5), 1)
    if me() == 1:
        work = dist.irecv(torch.zeros(3), 0)
        error = raises(Exception, work.wait)
        assert work.is_completed() and not work.is_success()
        assert str(error) in str(work.exception())
        assert raises(Exception, work.get_future().wait)
    dist.barrier()


def wait_with_a_timeout() -> None:
    soon = timedelta(milliseconds=200)
    if me() == 0:
        work = dist.all_reduce(own(), async_op=True)
        raises(RuntimeError, lambda: work.wait(soon))
        message = dist.irecv(torch.zeros(3), size() - 1)
        raises(RuntimeError, lambda: message.wait(soon))
        dist.barrier(group=aside)
        work.wait()
        assert message.wait(timedelta(seconds=60))
    else:
        dist.barrier(group=aside)
        dist.all_reduce(own())
        if me() == size() - 1:
            dist.send(own(), 0)


def work_that_nobody_keeps() -> None:
    for _ in range(10):
        dist.all_reduce(torch.ones(100_000), async_op=True)
        dist.isend(torch.ones(100_000), (me() + 1) % size())
        dist.irecv(torch.empty(100_000), (me() - 1) % size())
    time.sleep(0.1)


if __name__ == "__main__":
    store, rank, ranks = from_mpi()
    dist.init_process_group("cpu:mpi4py", store=store, rank=rank, world_size=ranks)
    aside = dist.new_group()
    for check in (
        tags_out_of_order,
        from_any_source,
        rings,
        wrong_length_of_message,
        objects,
        sums_of_a_kind,
        sparse_sums,
        wrong_use,
        groups_in_different_orders,
        many_groups_alive,
        groups_made_again_and_again,
        a_group_split_in_two,
        python_threads,
        goes_on_while_the_rank_computes,
        in_the_order_of_issue,
        tensors_that_nobody_keeps,
        futures,
        errors_in_a_work,
        wait_with_a_timeout,
        work_that_nobody_keeps,
    ):
        check()
        dist.barrier()
        if rank == 0:
            print(check.__name__, flush=True)
    # Left without a word to the group, as scripts do.
