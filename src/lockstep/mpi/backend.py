"""A torch.distributed backend over mpi4py: MPI's collectives for PyTorch as it comes from PyPI.

    dist.init_process_group("cpu:mpi4py,cuda:nccl", init_method="mpi://")

under mpirun or srun. torch's wheels are built without MPI; since 2.14 a backend may be written in
Python, and is found by its entry point. A group has an MPI communicator of its own. What torch
calls is here; in what order and by which thread it is done is in `progress`, what a tensor is to
MPI in `buffers`, and what happens when a rank does not answer in `watchdog`.

Results are those of Gloo, but for the order in which floating-point numbers are added, and for
float16 and bfloat16, which are added in float32 and rounded once.
"""

import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import repeat
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.distributed import Work

from lockstep.mpi import losses, watchdog, wrapper
from lockstep.mpi.buffers import (
    LIMIT,
    blocks,
    deliver,
    incoming,
    moved,
    outgoing,
    parts,
    reduced,
    reduction,
    whole_of,
)
from lockstep.mpi.progress import Mover, Queue, Transfer
from lockstep.torch_private import Backend, nonzeros

NAME = "mpi4py"

Tensors = list[torch.Tensor]
Call = Callable[[], None]

_mover = Mover()
# With TORCH_DISTRIBUTED_DEBUG=DETAIL torch keeps a backend's C++ half alone.
_alive: set["MPIBackend"] = set()


def register() -> None:
    """Make the backend known to torch.distributed: the entry point that torch calls."""
    if hasattr(dist.Backend, NAME.upper()):
        return
    dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu", "cuda"])
    wrapper.complete(MPIBackend)


def create(opts: Any, _: Any) -> "MPIBackend":
    """Make a group's backend; all its ranks call this together.

    Raises:
        RuntimeError: the group has more ranks than MPI has started.
        UserError: MPI does not let several threads call it.
    """
    world = losses.world()
    if opts.group_size > world.size:
        raise RuntimeError(
            f"mpi4py: a group of {opts.group_size} ranks was asked for, and MPI has started "
            f"{world.size}; launch with `mpirun -n {opts.group_size}` of the MPI that mpi4py uses, "
            f"or `srun --mpi=pmix`"
        )
    watcher, seconds = watchdog.start(), opts.timeout.total_seconds()
    watcher.expect(seconds)
    comm = watcher.watch("new_group", opts.group_id, seconds, lambda: _communicator(opts))
    return MPIBackend(comm, opts.group_id, opts.timeout)


def _communicator(opts: Any) -> Any:
    """Return a new communicator whose ranks are the group's."""
    world = losses.world()
    if opts.group_size == world.size:
        return world.Split(0, opts.group_rank)
    # torch's ranks are MPI's only where init_method was mpi://: the members tell each other.
    opts.store.set(f"mpi/{opts.group_rank}", str(world.rank))
    ranks = [int(opts.store.get(f"mpi/{rank}")) for rank in range(opts.group_size)]
    members = world.Get_group().Incl(ranks)
    # Only members call this, and several groups may be made at once: a tag keeps them apart.
    return world.Create_group(members, zlib.crc32(opts.group_id.encode()) % 2**15)


class MPIBackend(Backend):
    """A process group's collectives and messages over an MPI communicator.

    The methods are those that torch's ProcessGroup calls; tensors may be of any shape, layout and
    device, empty, and longer than 2^31 elements. What cannot be done raises ValueError.
    """

    def __init__(self, comm: Any, name: str, timeout: timedelta) -> None:
        super().__init__(comm.rank, comm.size)
        watcher = watchdog.start()
        self.comm, self.ranks, self.me = losses.use(comm), comm.size, comm.rank
        self.label = "default" if name in ("", "0") else name  # torch numbers groups
        self._options = Backend.Options(NAME, timeout=timeout)
        # The last tag that this MPI has is that of messages which are part of a collective: MPI
        # promises 2^15 - 1, and UCX has 2^23 - 1. The others are for torch's users, who count
        # from 0.
        self.internal: Any = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)
        watcher.expect(timeout.total_seconds())
        self.queue = Queue(self.label, watcher, timeout.total_seconds())
        self._sequence = 0
        _alive.add(self)

    # What torch asks of any backend. Without the three properties it asks itself for ever.

    def getBackendName(self) -> str:  # noqa: N802
        return NAME

    @property
    def options(self) -> Any:
        return self._options

    @property
    def supports_coalescing(self) -> bool:
        return False

    @property
    def supports_splitting(self) -> bool:
        return True

    @property
    def supports_shrinking(self) -> bool:
        return False

    def split(self, store: Any, ranks: list[int], opts: Any) -> "MPIBackend | None":
        """Make the backend of a part of the group; all ranks of the group call this."""
        member = self.me in ranks
        color = min(ranks) if member else MPI.UNDEFINED
        place = ranks.index(self.me) if member else 0
        comm = self.queue.watchdog.watch(
            "split_group", self.label, self.queue.timeout, lambda: self.comm.Split(color, place)
        )
        if not member:
            return None
        timeout = opts._timeout if opts is not None else self._options._timeout
        return MPIBackend(comm, getattr(opts, "group_name", "") or self.label, timeout)

    def set_timeout(self, timeout: timedelta) -> None:
        self._options._timeout = timeout
        self.queue.timeout = timeout.total_seconds()
        self.queue.watchdog.expect(self.queue.timeout)

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.set_timeout(timeout)

    def _set_sequence_number_for_group(self) -> None:
        self._sequence = 0

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def shutdown(self) -> None:
        """Finish what was issued, and give the communicator back."""
        _alive.discard(self)
        self.queue.close()
        if self.comm is not None:
            losses.forget(self.comm)
        self.comm = None
        if not _alive:
            watchdog.stop()

    def abort(self) -> None:
        losses.abort(1)

    def _run(self, what: str, call: Call, tensors: Any, opts: Any) -> Work:
        self._sequence += 1
        return self.queue.run(what, call, tensors, opts.asyncOp, opts.timeout)

    # Collectives. Each makes a call that blocks, for `_run` to do now or later.

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        tensor, root = _one(tensors), opts.rootRank
        buffer = outgoing(tensor) if root == self.me else incoming(tensor)

        def call() -> None:
            self.comm.Bcast(moved(buffer), root)
            if root != self.me:
                deliver(buffer, tensor)

        return self._run("broadcast", call, tensors, opts)

    def allreduce(self, tensors: Tensors, opts: Any) -> Work:
        tensor = _one(tensors)
        if tensor.is_sparse:
            return self.allreduce_sparse(tensors, opts)
        return self._run("all_reduce", self._allreduce(tensor, opts), tensors, opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> Work:
        calls = [self._allreduce(tensor, opts) for tensor in tensors]
        return self._run("all_reduce_coalesced", _in_turn(calls), tensors, opts)

    def _allreduce(self, tensor: torch.Tensor, opts: Any) -> Call:
        how = reduction(opts.reduceOp, tensor.dtype)
        buffer = how.load(tensor)

        def call() -> None:
            for part in reduced(buffer, how.kind):
                self.comm.Allreduce(MPI.IN_PLACE, part, how.op)
            how.finish(buffer, self.ranks)
            deliver(buffer, tensor)

        return call

    def allreduce_sparse(self, tensors: Tensors, opts: Any) -> Work:
        tensor = _one(tensors)
        how = reduction(opts.reduceOp, tensor.dtype)
        if how.op != MPI.SUM or how.average or how.factor is not None:
            raise ValueError("mpi4py: sparse tensors can be summed, and nothing else")
        own = tensor.detach().cpu().coalesce()

        def call() -> None:
            # Each adds up what all have, in the order of the ranks.
            counts = self.comm.allgather(nonzeros(own))
            indices = self._all_gather_rows(own.indices().t(), counts).t()
            values = self._all_gather_rows(own.values(), counts)
            total = torch.sparse_coo_tensor(
                indices, values, tensor.shape, check_invariants=False
            ).coalesce()
            with torch.no_grad():
                tensor.copy_(total)

        return self._run("all_reduce", call, tensors, opts)

    def _all_gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Return the rows of all ranks, of which each has its own count."""
        whole = torch.empty(sum(counts), *rows.shape[1:], dtype=rows.dtype)
        own = outgoing(rows)
        self._exchange([own] * self.ranks, whole.split(counts))
        return whole

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        tensor, root = _one(tensors), opts.rootRank
        how = reduction(opts.reduceOp, tensor.dtype)
        buffer = how.load(tensor)

        def call() -> None:
            for part in reduced(buffer, how.kind):
                if root == self.me:
                    self.comm.Reduce(MPI.IN_PLACE, part, how.op, root)
                else:
                    self.comm.Reduce(part, None, how.op, root)
            if root == self.me:
                how.finish(buffer, self.ranks)
                deliver(buffer, tensor)

        return self._run("reduce", call, tensors, opts)

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any) -> Work:
        return self._run("all_gather", self._all_gather(output, tensor), [output], opts)

    def all_gather_single_coalesced(self, outputs: Tensors, tensors: Tensors, opts: Any) -> Work:
        calls = [self._all_gather(*pair) for pair in zip(outputs, tensors, strict=True)]
        return self._run("all_gather_coalesced", _in_turn(calls), outputs, opts)

    def _all_gather(self, output: torch.Tensor, tensor: torch.Tensor) -> Call:
        _expect("all_gather", output, tensor.numel() * self.ranks, tensor.dtype)
        buffer, own = incoming(output), outgoing(tensor)
        # FSDP gathers in place: what a rank sends is its part of what it receives.
        in_place = own.data_ptr() == buffer.data_ptr() + self.me * own.nbytes

        def call() -> None:
            sent = MPI.IN_PLACE if in_place else moved(own)
            self.comm.Allgather(sent, blocks(buffer, self.ranks))
            deliver(buffer, output)

        return call

    def allgather(self, outputs: list[Tensors], tensors: Tensors, opts: Any) -> Work:
        call = self._all_gather_list(_one(outputs), _one(tensors))
        return self._run("all_gather", call, outputs, opts)

    def allgather_coalesced(self, outputs: list[Tensors], tensors: Tensors, opts: Any) -> Work:
        # Here the first index is the rank, and the second the tensor.
        lists = [list(parts) for parts in zip(*outputs, strict=True)]
        calls = [self._all_gather_list(*pair) for pair in zip(lists, tensors, strict=True)]
        return self._run("all_gather_coalesced", _in_turn(calls), outputs, opts)

    def _all_gather_list(self, outputs: Tensors, tensor: torch.Tensor) -> Call:
        _expect_ranks("all_gather", outputs, self.ranks)
        _expect("all_gather", outputs[self.me], tensor.numel(), tensor.dtype)
        counts, own = [output.numel() for output in outputs], outgoing(tensor)
        buffer = torch.empty(sum(counts), dtype=tensor.dtype)

        def call() -> None:
            if len(set(counts)) == 1:
                self.comm.Allgather(moved(own), blocks(buffer, self.ranks))
            elif len(buffer) <= LIMIT:
                self.comm.Allgatherv(moved(own), parts(buffer, counts))
            else:
                self._exchange([own] * self.ranks, buffer.split(counts))
            for output, part in zip(outputs, buffer.split(counts), strict=True):
                deliver(part, output)

        return call

    def gather(self, outputs: list[Tensors], tensors: Tensors, opts: Any) -> Work:
        tensor, root = _one(tensors), opts.rootRank
        own, mine = outgoing(tensor), _one(outputs) if root == self.me else []
        if root == self.me:
            _expect_ranks("gather", mine, self.ranks)
            for output in mine:
                _expect("gather", output, tensor.numel(), tensor.dtype)
        buffer = torch.empty(len(mine) * tensor.numel(), dtype=tensor.dtype)

        def call() -> None:
            self.comm.Gather(moved(own), blocks(buffer, self.ranks) if mine else None, root)
            for output, part in zip(mine, buffer.view(len(mine), tensor.numel()), strict=True):
                deliver(part, output)

        return self._run("gather", call, outputs, opts)

    def scatter(self, outputs: Tensors, tensors: list[Tensors], opts: Any) -> Work:
        output, root = _one(outputs), opts.rootRank
        buffer, whole = incoming(output), None
        if root == self.me:
            given = _one(tensors)
            _expect_ranks("scatter", given, self.ranks)
            for tensor in given:
                _expect("scatter", tensor, output.numel(), output.dtype)
            whole = torch.cat([outgoing(tensor).view(-1) for tensor in given])

        def call() -> None:
            sent = None if whole is None else blocks(whole, self.ranks)
            self.comm.Scatter(sent, moved(buffer), root)
            deliver(buffer, output)

        return self._run("scatter", call, outputs, opts)

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any) -> Work:
        _expect("reduce_scatter", tensor, output.numel() * self.ranks, output.dtype)
        call = self._reduce_scatter(output, tensor, [output.numel()] * self.ranks, opts)
        return self._run("reduce_scatter", call, [output], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, tensors: Tensors, opts: Any
    ) -> Work:
        calls = []
        for output, tensor in zip(outputs, tensors, strict=True):
            _expect("reduce_scatter", tensor, output.numel() * self.ranks, output.dtype)
            counts = [output.numel()] * self.ranks
            calls.append(self._reduce_scatter(output, tensor, counts, opts))
        return self._run("reduce_scatter_coalesced", _in_turn(calls), outputs, opts)

    def reduce_scatter(self, outputs: Tensors, tensors: list[Tensors], opts: Any) -> Work:
        output, given = _one(outputs), _one(tensors)
        _expect_ranks("reduce_scatter", given, self.ranks)
        _expect("reduce_scatter", given[self.me], output.numel(), output.dtype)
        whole = torch.cat([tensor.reshape(-1) for tensor in given])
        call = self._reduce_scatter(output, whole, [tensor.numel() for tensor in given], opts)
        return self._run("reduce_scatter", call, outputs, opts)

    def _reduce_scatter(
        self, output: torch.Tensor, tensor: torch.Tensor, counts: list[int], opts: Any
    ) -> Call:
        how = reduction(opts.reduceOp, output.dtype)
        whole = how.load(tensor).view(-1)
        buffer = torch.empty(output.shape, dtype=how.dtype)

        def call() -> None:
            if len(whole) <= LIMIT:
                sent, received = whole_of(whole, how.kind), whole_of(buffer, how.kind)
                self.comm.Reduce_scatter(sent, received, counts, how.op)
            else:
                self._reduce_each(whole.split(counts), buffer, how)
            how.finish(buffer, self.ranks)
            deliver(buffer, output)

        return call

    def _reduce_each(self, whole: Sequence[torch.Tensor], buffer: torch.Tensor, how: Any) -> None:
        for root, part in enumerate(whole):
            received = reduced(buffer, how.kind) if root == self.me else repeat(None)
            for sent, into in zip(reduced(part, how.kind), received, strict=False):
                self.comm.Reduce(sent, into, how.op, root)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any,
    ) -> Work:
        counts = _counts(output, output_splits, self.ranks)
        sizes = _counts(tensor, input_splits, self.ranks)
        _expect("all_to_all", output, output.numel(), tensor.dtype)
        buffer, own = incoming(output), outgoing(tensor)

        def call() -> None:
            # With splits no rank knows how much another has: all must go the same way.
            if output_splits or input_splits or own.numel() > LIMIT:
                self._exchange(own.view(-1).split(sizes), buffer.view(-1).split(counts))
            else:
                self.comm.Alltoall(blocks(own, self.ranks), blocks(buffer, self.ranks))
            deliver(buffer, output)

        return self._run("all_to_all", call, [output], opts)

    def alltoall(self, outputs: Tensors, tensors: Tensors, opts: Any) -> Work:
        _expect_ranks("all_to_all", outputs, self.ranks)
        _expect_ranks("all_to_all", tensors, self.ranks)
        buffers, own = [incoming(t) for t in outputs], [outgoing(t) for t in tensors]

        def call() -> None:
            self._exchange(own, buffers)
            for buffer, output in zip(buffers, outputs, strict=True):
                deliver(buffer, output)

        return self._run("all_to_all", call, outputs, opts)

    def _exchange(self, sent: Sequence[torch.Tensor], received: Sequence[torch.Tensor]) -> None:
        """Send each rank its tensor and receive one from each; they may be of any size."""
        requests = []
        try:
            for rank, buffer in enumerate(received):
                requests.append(self.comm.Irecv(moved(buffer), rank, self.internal))
            for rank, buffer in enumerate(sent):
                requests.append(self.comm.Isend(moved(buffer), rank, self.internal))
        finally:
            losses.wait_for(requests)

    def barrier(self, opts: Any) -> Work:
        return self._run("barrier", self.comm.Barrier, [], opts)

    # Messages from one rank to another.

    def send(self, tensors: Tensors, dst: int, tag: int) -> Work:
        self._check_tag(tag)
        buffer = outgoing(_one(tensors))
        request = self.comm.Isend(moved(buffer), dst, tag)
        return self._transfer("send", request, tensors, lambda _: buffer)

    def recv(self, tensors: Tensors, src: int, tag: int) -> Work:
        self._check_tag(tag)
        tensor = _one(tensors)
        buffer = incoming(tensor)
        message = moved(buffer)

        def end(status: Any) -> None:
            count = status.Get_count(message[2])
            if count != message[1]:
                raise ValueError(
                    f"mpi4py: rank {status.source} sent {count} elements, and {message[1]} were "
                    f"expected"
                )
            deliver(buffer, tensor)

        return self._transfer("recv", self.comm.Irecv(message, src, tag), tensors, end)

    def recv_anysource(self, tensors: Tensors, tag: int) -> Work:
        return self.recv(tensors, MPI.ANY_SOURCE, tag)

    def _check_tag(self, tag: int) -> None:
        if not 0 <= tag < self.internal:
            raise ValueError(f"mpi4py: tag: expected 0 to {self.internal - 1} here, not {tag}")

    def _transfer(
        self, what: str, request: Any, tensors: Tensors, end: Callable[[Any], Any]
    ) -> Transfer:
        transfer = Transfer(what, request, tensors, end, self.queue)
        _mover.add(transfer)
        return transfer


def _in_turn(calls: list[Call]) -> Call:
    def all_calls() -> None:
        for call in calls:
            call()

    return all_calls


def _one(items: Sequence[Any]) -> Any:
    if len(items) != 1:
        raise ValueError(f"mpi4py: expected one tensor for each rank, not {len(items)}")
    return items[0]


def _counts(tensor: torch.Tensor, splits: list[int], ranks: int) -> list[int]:
    """Return how many elements go to, or come from, each rank; splits are along dimension 0."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not splits:
        if rows % ranks:
            raise ValueError(f"mpi4py: all_to_all: {rows} rows cannot be shared by {ranks} ranks")
        return [tensor.numel() // ranks] * ranks
    if len(splits) != ranks or sum(splits) != rows:
        raise ValueError(
            f"mpi4py: all_to_all: the splits {splits} do not share {rows} rows among {ranks} ranks"
        )
    return [tensor.numel() // rows * split if rows else 0 for split in splits]


def _expect(what: str, tensor: torch.Tensor, count: int, dtype: torch.dtype) -> None:
    if tensor.numel() != count or tensor.dtype != dtype:
        raise ValueError(
            f"mpi4py: {what}: a tensor has {tensor.numel()} elements of {tensor.dtype}; expected "
            f"{count} of {dtype}"
        )


def _expect_ranks(what: str, tensors: Tensors, ranks: int) -> None:
    if len(tensors) != ranks:
        raise ValueError(f"mpi4py: {what}: expected {ranks} tensors, one a rank: {len(tensors)}")
