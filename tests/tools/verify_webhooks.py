"""Verifies webhook calls with the reference library.

Reads lines of JSON, each with `secret`, `headers` and `body`, and prints how many of them there were.
It fails at the first that does not verify.
"""

import json
import sys

from standardwebhooks import Webhook


def main() -> None:
    count = 0
    for line in sys.stdin:
        call = json.loads(line)
        event = Webhook(call["secret"]).verify(call["body"], call["headers"])
        assert event["id"] == call["headers"]["webhook-id"], event
        assert event["specversion"] == "1.0", event
        count += 1
    print(count)


if __name__ == "__main__":
    main()
