"""A stock cluster client that writes and reads without pause, and says what it saw.

Usage: cluster_client.py HOST:PORT PREFIX [KEYS]

It writes to KEYS keys in turn (spread over all slots), each write a number larger than the one
before it, and reads each key back now and then. It stops when its standard input ends; then it
reads every key once more and prints one line of JSON:

  acknowledged  writes that were answered with success
  lost          keys whose value is older than the last acknowledged write
  errors        what reached the application, by class, though the library retries by itself
  unmet         how often the library was sent (ASK) to a node that it had not met, for which it falls
                over its own feet (redis-py 8.1: get_node gives None); it is made to look again then
  gaps_ms       for each shard that stood still: the longest times between two writes, longest first
"""

import json
import sys
import threading
import time
from collections import Counter

from redis.cluster import ClusterNode, RedisCluster


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    prefix, count = sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 300
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, int(port))],
        decode_responses=True,
        socket_timeout=2,
        socket_connect_timeout=1,
    )
    keys = [f"{prefix}:{i}" for i in range(count)]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    acknowledged: dict[str, int] = {}
    errors: Counter[str] = Counter()
    stale = 0
    unmet = 0
    total = 0
    gaps: list[float] = []
    print("ready", flush=True)
    last = time.monotonic()
    while not stop.is_set():
        for key in keys:
            total += 1
            try:
                client.set(key, total)
                acknowledged[key] = total
            except AttributeError as error:
                if "'redis_connection'" not in str(error):
                    raise
                unmet += 1
                client.nodes_manager.initialize()
                continue
            except Exception as error:  # the count is the result
                errors[f"{type(error).__name__}: {error}"[:120]] += 1
                time.sleep(0.005)
                continue
            now = time.monotonic()
            gaps.append((now - last) * 1000)
            last = now
            if total % 7 == 0:
                try:
                    stale += int(client.get(key) or 0) < acknowledged[key]
                except AttributeError:
                    unmet += 1
                    client.nodes_manager.initialize()
                except Exception as error:
                    errors[f"{type(error).__name__}: {error}"[:120]] += 1
            if stop.is_set():
                break
    lost = [k for k, v in acknowledged.items() if int(client.get(k) or 0) < v]
    told = {
        "acknowledged": total - sum(errors.values()) - unmet,
        "unmet": unmet,
        "lost": lost,
        "stale_reads": stale,
        "errors": errors,
        "gaps_ms": sorted((round(g, 1) for g in gaps), reverse=True)[:200],
    }
    print(json.dumps(told), flush=True)


main()
