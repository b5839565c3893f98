"""A backend of torch.distributed over mpi4py. It imports no other folder."""

import os


def tells_of_the_dead() -> bool:
    """Return whether MPI tells of dead ranks, in place of ending the job with them.

    Here, where no MPI is loaded: who loads it must know before.
    """
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its name is that
