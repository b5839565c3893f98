"""A backend of torch.distributed over mpi4py. It imports no other folder."""

import os

# Set where a process is started for a job that runs (`newcomers`).
JOINS = "LOCKSTEP_JOINS"


def tells_of_the_dead() -> bool:
    """Return whether MPI tells of dead ranks, in place of ending the job with them.

    Here, where no MPI is loaded: who loads it must know before.
    """
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its name is that


def load() -> None:
    """Load MPI, as it is to be here; it waits for all ranks."""
    # A rank of Open MPI's that waits spins. It is to offer its core to whoever can use it: to its
    # own threads that compute, or to another program. On an idle machine that costs nothing.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # These bridges have one address on all hosts, and Open MPI takes them for a way between hosts.
    if "OMPI_MCA_btl_tcp_if_include" not in os.environ:
        os.environ.setdefault("OMPI_MCA_btl_tcp_if_exclude", "127.0.0.0/8,docker0,virbr0")
    import mpi4py

    # Where ranks may die: to leave MPI is to wait for all, for ever perhaps. None need do it.
    if tells_of_the_dead():
        mpi4py.rc.finalize = False
    from mpi4py import MPI  # noqa: F401 - starts it
