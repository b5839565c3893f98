"""What of torch is private and used all the same: imported here alone, each with the reason.

A private name may go with any release. So pyproject.toml caps torch at the release that the tests
ran with, and a new one is looked at here first.
"""

import os
import sys
from typing import Any

import torch

# The class in C++ that a backend in Python derives from: torch.distributed.Backend is its name.
from torch._C._distributed_c10d import Backend as Backend

# What a hook of ProcessGroup.register_pre_hook is given, which is public and has no public type.
from torch._C._distributed_c10d import PreHookArgs as PreHookArgs
from torch.distributed import ProcessGroup, Work, distributed_c10d

# Tensors in whatever a module keeps or returns, lists and dicts within one another: torch has no
# public name for its trees, and a copy of it would not know what users have registered there.
from torch.utils._pytree import tree_leaves as tree_leaves


def process_groups() -> list[ProcessGroup]:
    """Return every group that there is, those of torch's device meshes as well: no public list."""
    return list(distributed_c10d._world.pg_map)


def backend_of(group: ProcessGroup, device: torch.device) -> Backend:
    """Return what carries a group's tensors on a device: torch has its name alone in public."""
    return group._get_backend(device)


def operation_of(work: Work) -> int:
    """Return the number of a work's operation: torch has it in its flight recorder alone."""
    return work._get_op_type()  # type: ignore[attr-defined]


def nonzeros(tensor: torch.Tensor) -> int:
    """Return how many values a sparse tensor holds, before duplicates are added up."""
    return tensor._nnz()


def set_deterministic(strict: bool, warn_only: bool = False) -> None:
    """Do what torch.use_deterministic_algorithms does, without loading torch's compiler.

    The public function loads it for a switch of its own: 1.6 s. A compiler that is loaded later
    reads the same switch from the environment.
    """
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        return
    if strict:  # a session sets its environment back
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
    torch._C._set_deterministic_algorithms(strict, warn_only=warn_only)


def without_compiler(kind: Any) -> Any:
    """Return a class of optimizers that does what another does, without loading torch's compiler.

    The methods of torch's own load it (1.4 s), to tell it that it is not to compile them.
    """
    add, zero, step = (getattr(kind, name) for name in ("add_param_group", "zero_grad", "step"))
    methods = {
        "add_param_group": add.__wrapped__,
        "zero_grad": zero.__wrapped__,
        "step": torch.no_grad()(step.__wrapped__),
    }
    return type(kind.__name__, (kind,), methods)
