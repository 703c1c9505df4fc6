"""Agree on a name for a start of the ranks, in a store that outlives starts, and on the kind of their devices."""

import secrets
import socket
import time
from typing import Any

from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank


def name_of_start(rank: Rank, store: Any, timeout_seconds: float) -> str:
    """Agree with the other ranks on a name for this start, which no earlier start had.

    torchrun keeps its store over its restarts, and in it the addresses of dead ranks, under the same keys
    (pytorch/pytorch#135712); its count of restarts differs between nodes. So rank 0 thinks of a name, and each other
    rank takes it only when rank 0 has repeated that rank's own token, which a dead rank 0 cannot have.

    Args:
        rank: this process.
        store: torch's store, which all ranks share.
        timeout_seconds: after which the others count as missing.

    Raises:
        TimeoutError: they are missing.
    """
    token = secrets.token_hex(8)
    if rank.rank == 0:
        store.set("moco_dist", token)
        tokens = [store.get(f"{token}/{other}") for other in range(1, rank.size)]
        store.set(f"{token}/met", b" ".join(tokens))
        return token
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        name = str(store.get("moco_dist"), "ascii")
        store.set(f"{name}/{rank.rank}", token)
        if store.check([f"{name}/met"]) and token.encode() in store.get(f"{name}/met").split():
            return name
        time.sleep(0.1)
    raise TimeoutError(f"rank {rank.rank}: the other ranks did not start within {timeout_seconds:.0f} s")


def check_device(rank: Rank, store: Any, kind: str) -> None:
    """Refuse a rank on another kind of device than the first one here: they would wait for each other in vain.

    With `device.type=auto`, a node whose driver has failed would use its CPU. Each rank asks the store once.

    Args:
        rank: this process.
        store: torch's store, which all ranks share in this start alone.
        kind: type of this rank's device.

    Raises:
        UserError: names both.
    """
    own = f"rank {rank.rank} on {socket.gethostname()} has {kind}"
    first = str(store.compare_set("moco_dist_device", "", own), "utf-8")
    if first.rpartition(" ")[2] != kind:
        fix = "mend or leave out the node without a GPU that works, or use device.type=cpu"
        raise UserError.of("device.type", "auto", f"{own}, and {first}", fix)
