"""What `import torch` calls once this package is installed: it makes `mpi://` known, no more.

torch.distributed asks for a rendezvous before it loads a backend, so the backend could not do it.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any


def register() -> None:
    """Make `init_method="mpi://"` known to torch.distributed: an entry point of torch's."""
    from torch.distributed.rendezvous import register_rendezvous_handler

    register_rendezvous_handler("mpi", _rendezvous)


def _rendezvous(url: str, timeout: timedelta | None = None, **_: Any) -> Iterator[Any]:
    from lockstep.distributed.rendezvous import from_mpi

    yield from_mpi(timeout)
