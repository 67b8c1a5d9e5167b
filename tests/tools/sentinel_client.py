"""A stock sentinel-aware client that writes without pause, and says what it saw.

Usage: sentinel_client.py SENTINELS NAME NODES [KEYS]

SENTINELS and NODES are addresses with commas between them. It asks Sentinels for the primary NAME and
writes to KEYS keys in turn, each write a number larger than the one before it. Beside it, a prober
tries to write to each of NODES each 5 ms and notes who takes it. It stops when its standard input ends;
then it reads every key once more and prints one line of JSON:

  acknowledged  writes that were answered with success
  lost          keys whose value is older than the last acknowledged write
  errors        what reached the application, by class
  gaps_ms       the longest times between two writes, longest first
  takers        who took the prober's writes, one after the other; where two take them at the same time,
                they take turns here
"""

import json
import sys
import threading
import time
from collections import Counter

from redis import Redis
from redis.sentinel import Sentinel


def split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


def probe(nodes: list[str], takers: list[str], stop: threading.Event) -> None:
    clients = [
        (n, Redis(*split(n), socket_timeout=0.2, socket_connect_timeout=0.2)) for n in nodes
    ]
    count = 0
    while not stop.is_set():
        for node, client in clients:
            count += 1
            try:
                client.set("probe", count)
            except Exception:  # refused, paused or away: all that counts is that it was not taken
                continue
            if not takers or takers[-1] != node:
                takers.append(node)
        time.sleep(0.005)


def main() -> None:
    sentinels = [split(a) for a in sys.argv[1].split(",")]
    name, nodes = sys.argv[2], sys.argv[3].split(",")
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 100
    sentinel = Sentinel(sentinels, socket_timeout=0.5)
    client = sentinel.master_for(name, socket_timeout=1, socket_connect_timeout=0.5)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    takers: list[str] = []
    prober = threading.Thread(target=probe, args=(nodes, takers, stop))
    prober.start()
    acknowledged: dict[str, int] = {}
    errors: Counter[str] = Counter()
    gaps: list[float] = []
    total = 0
    client.set("app:ready", 1)
    print("ready", flush=True)
    last = time.monotonic()
    while not stop.is_set():
        key = f"app:{total % count}"
        total += 1
        try:
            client.set(key, total)
        except Exception as error:  # the count is the result
            errors[f"{type(error).__name__}: {error}"[:120]] += 1
            time.sleep(0.005)
            continue
        acknowledged[key] = total
        now = time.monotonic()
        gaps.append((now - last) * 1000)
        last = now
    prober.join()
    lost = [k for k, v in acknowledged.items() if int(client.get(k) or 0) < v]
    told = {
        "acknowledged": total - sum(errors.values()),
        "lost": lost,
        "errors": errors,
        "gaps_ms": sorted((round(g, 1) for g in gaps), reverse=True)[:50],
        "takers": takers,
    }
    print(json.dumps(told), flush=True)


main()
