"""Memory that each step frees and asks for again: the process keeps it.

glibc gives a large block back to the system when it is freed, and the system clears every page of
one that is asked for: a quarter of a small CNN's training, and nothing of it changes a bit.
"""

import ctypes

# Of <malloc.h>. Blocks below the first are taken from what the process has, and it gives back what
# is free beyond the second. 32 MiB is the most that glibc takes for the first.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_BLOCK, MOST_KEPT = 32 * 2**20, 2**30


def keep_freed() -> None:
    """Have the process keep up to 1 GiB of memory that is freed, for the next to ask for it.

    It stays so until the process ends, whatever glibc's own variables say: it does not tell what
    was set before. Where there is another C library, nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        set_option(M_TRIM_THRESHOLD, MOST_KEPT)
