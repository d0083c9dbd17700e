"""How fast, and whether at all, ranks reach one another: small all-reduces in pairs that form rings.

Every rank is paired with the next one inside its node, then with the rank of the same place on the next node, then with that on the
node before. So each node has two links to others, and each network card is used. A pair is a process group of its own: a dead rank
spoils its own links and no others.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from launch.nodes.report import Link
from launch.ranks import Place

BYTES, TIMES = 16 << 20, 5
Store = dist.Store
# kind, this rank's partner
Pair = tuple[str, int]


def meet(place: Place, host: str, address: str, port: int, seconds: float) -> tuple[Store, dict[int, str], float]:
    """Everyone tells rank 0 its host; after `seconds` it says who is there, and all look at their clocks.

    Returns the store, the host of each rank that is there, and the clock. Raises dist.DistError where rank 0 cannot be reached.
    """
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(address, port, place.world_size, place.rank == 0, limit, wait_for_workers=False)
    store.set(f"host-{place.rank}", host)
    if place.rank == 0:
        end, waiting = time.monotonic() + seconds, set(range(place.world_size))
        while waiting and time.monotonic() < end:
            waiting -= {rank for rank in waiting if store.check([f"host-{rank}"])}
            time.sleep(0.01)
        there = [rank for rank in range(place.world_size) if rank not in waiting]
        store.set("there", json.dumps({rank: store.get(f"host-{rank}").decode() for rank in there}))
    store.wait(["there"], 2 * limit)
    clock = time.time()
    return store, {int(rank): of for rank, of in json.loads(store.get("there")).items()}, clock


def pairs(hosts: Mapping[int, str], rank: int) -> list[list[Pair]]:
    """Turns, each with at most one partner of this rank."""
    nodes: dict[str, list[int]] = defaultdict(list)
    for each in sorted(hosts):
        nodes[hosts[each]].append(each)
    mine = nodes[hosts[rank]]
    place = mine.index(rank)
    partner = place ^ 1
    inside = [("inside", mine[partner])] if partner < len(mine) else []
    column = [nodes[name][place] for name in nodes if place < len(nodes[name])]
    here, count = column.index(rank), len(column)
    turns = [inside]
    # edge i joins i and i + 1; even ones, odd ones, and the last of an odd ring by itself
    for turn in range(3 if count > 2 else 1):
        edges = [i for i in range(count if count > 2 else count - 1) if _turn(i, count) == turn and here in (i, (i + 1) % count)]
        turns.append([("between", column[(i + 1) % count] if here == i else column[i]) for i in edges])
    return turns


def _turn(edge: int, count: int) -> int:
    return 2 if count % 2 and edge == count - 1 else edge % 2


def measure(place: Place, store: Store, hosts: Mapping[int, str], seconds: float, done: Callable[[list[Link]], None]) -> None:
    """Every link of this rank. seconds: that one may take. done: told of all so far after each."""
    links: list[Link] = []
    for turn in pairs(hosts, place.rank):
        for kind, peer in turn:
            links.append(Link(kind, peer, bandwidth(store, place, peer, seconds)))
            done(links)


def linger(store: Store, rank: int, hosts: Mapping[int, str], seconds: float) -> None:
    """Rank 0 holds the store that all pairs meet by, so it leaves last."""
    store.set(f"done-{rank}", "")
    end = time.monotonic() + seconds
    while rank == 0 and time.monotonic() < end and not store.check([f"done-{each}" for each in hosts]):
        time.sleep(0.01)


def bandwidth(store: Store, place: Place, peer: int, seconds: float) -> float | None:
    """GB/s of the fastest of a few all-reduces with a peer; None: they failed or took too long."""
    low, high = sorted((place.rank, peer))
    device = torch.device("cuda", place.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    values = torch.ones(BYTES // 4, device=device)
    best, end = 0.0, time.monotonic() + seconds
    try:
        group = _group(dist.PrefixStore(f"pair-{low}-{high}", store), int(place.rank == high), device, seconds)
        for _ in range(1 + TIMES):
            began = time.perf_counter()
            work = group.allreduce([values])
            while not _ended(work, device):
                if time.monotonic() > end:
                    return None
            best = max(best, BYTES / 1e9 / (time.perf_counter() - began))
    except RuntimeError:
        return None
    # all-reduced 1 + TIMES times among two
    return best if values[0].item() == 2 ** (1 + TIMES) else None


def _group(store: Store, rank: int, device: torch.device, seconds: float) -> dist.ProcessGroup:
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # what hangs is left alone here, and ends with the process; NCCL's own watchdog would end it, and with it the other links
        return dist.ProcessGroupNCCL(store, rank, 2, timedelta(hours=1))
    return dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=seconds))


def _ended(work: dist.Work, device: torch.device) -> bool:
    if device.type == "cpu":
        return work.wait()
    if not work.is_completed():
        return False
    torch.cuda.synchronize(device)
    return True
