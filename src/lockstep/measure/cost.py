"""What a collective costs: the steps it takes and the bytes it moves, at any number of ranks.

The model is that of Hockney (1994) with the counts of Thakur, Rabenseifner and Gropp
("Optimization of Collective Communication Operations in MPICH", 2005):

    t = steps(P) * alpha + bytes(P) / beta

alpha is the latency of a message in seconds and beta the bandwidth of a link in bytes per second.
The bytes are those of nccl-tests' bus bandwidth (its doc/PERFORMANCE.md), so beta is the bus
bandwidth that long messages come to.
"""

import math

# An operation's `bytes` are those of its largest buffer: what all_gather and gather end with, what
# reduce_scatter and scatter begin with, what a rank sends in all_to_all.
DIVIDED = ("all_gather", "gather", "scatter", "reduce_scatter", "all_to_all")


def bus_factor(operation: str, ranks: int) -> float:
    """Return the share of an operation's bytes that has to pass the busiest link."""
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in DIVIDED:
        return (ranks - 1) / ranks
    return 1.0  # a message, broadcast, reduce; a barrier has no bytes


def steps(operation: str, ranks: int, ring: bool) -> int:
    """Return how many messages an operation sends one after another.

    Args:
        operation: its name, as `comm.probe` has it.
        ranks: P.
        ring: whether all_reduce, all_gather and reduce_scatter go round a ring (Gloo), or by
            recursive halving and doubling (what MPI and NCCL's trees come close to).
    """
    if ranks == 1:
        return 0
    tree = math.ceil(math.log2(ranks))
    if operation in ("send_recv", "isend_irecv"):
        return 1
    if operation == "all_to_all":
        return ranks - 1
    if operation in ("all_gather", "reduce_scatter"):
        return ranks - 1 if ring else tree
    if operation == "all_reduce":
        return 2 * (ranks - 1 if ring else tree)
    return tree  # broadcast, reduce, gather, scatter, barrier: a binomial tree
