"""Makes the calls that come as JSON lines on standard input, through the
socket client of examples/automation, and prints each answer as a JSON line."""

import base64
import json
import sys

sys.path.insert(0, sys.argv[1])
from gantry_bus import Bus, Refused  # noqa: E402

with Bus(sys.argv[2]) as bus:
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = bus.call(call["verb"], call["resource"], call["namespace"], call["name"], call["body"].encode(), call["headers"])
            out = {"body": base64.b64encode(answer.body).decode(), "headers": answer.headers}
        except Refused as refused:
            out = {"refused": refused.status}
        print(json.dumps(out), flush=True)
