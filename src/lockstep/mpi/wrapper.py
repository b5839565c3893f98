"""What torch leaves out where it wraps the work of a backend that is written in Python.

The wrapper passes on `wait` and `get_future`, and nothing else: it never calls a work completed,
knows no exception and no result, and not who sent what was received from any rank. The future has
the first three; a receive from any rank goes to the backend itself, unwrapped.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Work

from lockstep.torch_private import backend_of, operation_of

# What torch calls the operation of a work that did not say: the wrapper's.
_UNKNOWN = 100

_is_completed, _exception = Work.is_completed, Work.exception
_is_success, _result = Work.is_success, Work.result
_recv_anysource = dist.ProcessGroup.recv_anysource


def complete(backends: type[Any]) -> None:
    """Make torch's wrapper complete, for whatever it wraps.

    Args:
        backends: those whose receives from any rank go to themselves.
    """

    def recv_anysource(group: dist.ProcessGroup, tensors: list[torch.Tensor], tag: int) -> Any:
        backend = backend_of(group, tensors[0].device)
        if isinstance(backend, backends):
            return backend.recv_anysource(tensors, tag)
        return _recv_anysource(group, tensors, tag)

    dist.ProcessGroup.recv_anysource = recv_anysource  # type: ignore[method-assign, assignment]
    for method in (is_completed, exception, is_success, result):
        setattr(Work, method.__name__, method)


def is_completed(work: Work) -> bool:
    return _is_completed(work) or (_is_wrapper(work) and work.get_future().done())


def exception(work: Work) -> Any:
    if not _is_wrapper(work):
        return _exception(work)
    future = work.get_future()
    try:
        future.value() if future.done() else None
    except Exception as error:
        return error
    return None


def is_success(work: Work) -> bool:
    if not _is_wrapper(work):
        return _is_success(work)
    return work.get_future().done() and exception(work) is None


def result(work: Work) -> Any:
    return work.get_future().wait() if _is_wrapper(work) else _result(work)


def _is_wrapper(work: Work) -> bool:
    return operation_of(work) == _UNKNOWN
