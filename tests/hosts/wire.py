"""A bad cable: python wire.py ONE OTHER DELAY LOSS carries frames between two network interfaces.

Each frame is DELAY seconds under way, and is lost with the probability LOSS. The kernel's netem can
do that too, where it is there: those of many virtual machines and containers lack it.
"""

import random
import select
import socket
import sys
import time
from collections import deque

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
LONGEST = 1 << 17


def plug(interface: str) -> socket.socket:
    """Return a socket for all frames that arrive at an interface, and for some to be sent there."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    # With the kernel's notes on a frame: it may be longer than the wire allows, and its checksum
    # may be still to be computed.
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.bind((interface, 0))
    return end


def main(one: str, other: str, delay: float, loss: float) -> None:
    """Carry frames until the process is killed."""
    ends = [plug(one), plug(other)]
    across = dict(zip(ends, reversed(ends), strict=True))
    under_way: deque[tuple[float, socket.socket, bytes]] = deque()
    print("ready", flush=True)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], wait)[0]:
            frame = end.recv(LONGEST)
            if random.random() >= loss:
                under_way.append((time.monotonic() + delay, across[end], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, frame = under_way.popleft()
            end.send(frame)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
