#!/usr/bin/env python3
"""Apply a manifest, wait until it is ready, read a log, run a command, clean up:
with Python's standard library and a socket. See gantry_bus.py for the client.

    automate.py MANIFEST.json
"""

import json
import sys

from gantry_bus import Bus, Refused, credentials


def ready(deployment):
    status, want = deployment.get("status", {}), deployment["spec"]["replicas"]
    return status.get("observedGeneration") == deployment["metadata"]["generation"] and status.get("readyReplicas", 0) == want


def main(path):
    with open(path, encoding="utf-8") as file:
        manifest = json.load(file)
    name, namespace = manifest["metadata"]["name"], manifest["metadata"].get("namespace", "default")

    with Bus(credentials()) as bus:
        answer = bus.call("apply", "deployments", namespace, name, manifest)
        deployment = answer.json()
        print(f"deployment {name} {answer.header('Gantry-Result')}")

        if not ready(deployment):
            events = bus.watch("deployments", namespace, deployment["metadata"]["resourceVersion"], fieldSelector=f"metadata.name={name}")
            next(o for _, o in events if ready(o))
        print(f"deployment {name} ready")

        labels = ",".join(f"{k}={v}" for k, v in manifest["spec"]["selector"]["matchLabels"].items())
        pods = bus.call("list", "pods", namespace, body={"labelSelector": labels}).json()["items"]
        pod = pods[0]["metadata"]["name"]
        # Lines come as they are kept: time, stream, F for a full line, and the line.
        line = bus.log(namespace, pod, lines=1).decode().strip().split(" ", 3)[-1]
        print(f"log of {pod}: {line}")

        code, out, err = bus.exec(namespace, pod, ["/web", "get", "http://127.0.0.1:8080/"])
        print(f"exec in {pod}: exit {code}: {(out + err).decode().strip()}")
        if code != 0:
            return 1

        try:  # the same rules as at the command line
            bus.call("create", "deployments", namespace, name, {**manifest, "spec": {**manifest["spec"], "replicas": -1}})
        except Refused as refused:
            print(f"refused: {refused.status['reason']}: {refused.status['message']}")

        bus.call("delete", "deployments", namespace, name, {"propagationPolicy": "Foreground"})
        events = bus.watch("deployments", namespace, deployment["metadata"]["resourceVersion"], fieldSelector=f"metadata.name={name}")
        next(o for kind, o in events if kind == "DELETED")
        print(f"deployment {name} deleted")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
