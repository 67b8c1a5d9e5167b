"""A stock client that writes without pause to whichever node is primary, and says what it saw.

Usage: replication_client.py HOST:PORT,HOST:PORT,… [PASSWORD [followed]]

It keeps to one node until that refuses or is gone, then asks all of them for their role. Each write
is a number larger than the one before it. Beside it, a prober asks all nodes for their role about
every 5 ms. With `followed` a node is a primary only while it has a replica, since blank nodes say that they
are primaries too. It stops when its standard input ends; then it reads every key once more and prints one
line of JSON:

  acknowledged  writes that were answered with success
  lost          keys whose value on the primary is older than the last acknowledged write
  errors        what reached the application, by class
  rounds        how often the prober asked all nodes
  two           how often one node was a primary before and after another one was
  gaps_ms       the longest times between two acknowledged writes, longest first
"""

import json
import sys
import threading
import time
from collections import Counter

import redis


def main() -> None:
    password = sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] else None
    followed = len(sys.argv) > 3
    nodes = [address.rsplit(":", 1) for address in sys.argv[1].split(",")]

    def connect(node: list[str], timeout: float) -> redis.Redis:
        return redis.Redis(
            host=node[0],
            port=int(node[1]),
            password=password,
            decode_responses=True,
            socket_timeout=timeout,
            socket_connect_timeout=0.5,
        )

    clients = [connect(node, 2) for node in nodes]
    probes = [connect(node, 0.2) for node in nodes]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    probed = {"rounds": 0, "two": 0}

    def leads(client: redis.Redis) -> bool:
        try:
            role = client.execute_command("ROLE")
            return role[0] == "master" and (not followed or len(role[2]) > 0)
        except redis.RedisError:
            return False

    def probe() -> None:
        while not stop.is_set():
            # A primary before and after another one was: two at the same time.
            before = [leads(p) for p in probes]
            after = [leads(p) for p in probes]
            for i in range(len(probes)):
                later = any(before[j] for j in range(i + 1, len(probes)))
                probed["two"] += int(before[i] and after[i] and later)
            probed["rounds"] += 1
            time.sleep(0.005)

    prober = threading.Thread(target=probe, daemon=True)
    acknowledged: dict[str, int] = {}
    errors: Counter[str] = Counter()
    gaps: list[float] = []
    total = 0
    current = next((c for c in clients if leads(c)), clients[0])
    prober.start()
    print("ready", flush=True)
    last = time.monotonic()
    while not stop.is_set():
        total += 1
        key = f"app:{total % 300}"
        try:
            current.set(key, total)
            acknowledged[key] = total
        except redis.RedisError as error:
            errors[f"{type(error).__name__}: {error}"[:80]] += 1
            found = next((c for c in clients if leads(c)), None)
            if found is None:
                time.sleep(0.001)
            else:
                current = found
            continue
        now = time.monotonic()
        gaps.append((now - last) * 1000)
        last = now
    prober.join()
    primary = next((c for c in clients if leads(c)), clients[0])
    lost = [k for k, v in acknowledged.items() if int(primary.get(k) or 0) < v]
    told = {
        "acknowledged": len(gaps),
        "lost": lost,
        "stale_reads": 0,
        "errors": errors,
        "rounds": probed["rounds"],
        "two": probed["two"],
        "gaps_ms": sorted((round(g, 1) for g in gaps), reverse=True)[:200],
    }
    print(json.dumps(told), flush=True)


main()
