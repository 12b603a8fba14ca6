# SPDX-License-Identifier: Apache-2.0
"""The loop of the child: requests in, threads, answers out."""

import json
import os
import sys
import threading
import traceback
from typing import Any

from lab.child import churn, flood, servers, verbs

VERBS = {
    name: function
    for module in (churn, flood, servers, verbs)
    for name, function in vars(module).items()
    if getattr(function, "is_verb", False)
}
_writing = threading.Lock()


def answer(request: dict[str, Any]) -> None:
    """Run one request and print what came of it."""
    reply: dict[str, Any] = {"id": request["id"]}
    try:
        reply["result"] = VERBS[request["verb"]](**request["arguments"])
    except Exception:  # noqa: BLE001 - whatever it is, the caller must be told
        reply["error"] = traceback.format_exc()
    with _writing:
        print(json.dumps(reply), flush=True)


def main() -> None:
    """Serve until the other end of standard input closes."""
    print(json.dumps({"id": 0, "result": os.getpid()}), flush=True)
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


main()
