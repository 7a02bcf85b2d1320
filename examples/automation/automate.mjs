// Apply a manifest, wait until it is ready, read a log, run a command, clean up:
// with a NATS module from npm, over a websocket.
//
//   npm ci && node automate.mjs MANIFEST.json
//
// The control plane listens for websockets where it is told to (--websocket).
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";

import { headers as newHeaders, nkeyAuthenticator, wsconnect } from "@nats-io/nats-core";
import WebSocket from "ws";

globalThis.WebSocket ??= WebSocket; // Node has its own from version 22 on

class Refused extends Error {
  constructor(status) {
    super(status.message);
    this.status = status;
  }
}

const manifest = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { name, namespace = "default" } = manifest.metadata;
const credentials = JSON.parse(
  readFileSync(process.env.GANTRY_CREDENTIALS ?? "/var/lib/gantry/controlplane/credentials/admin.json", "utf8"),
);
if (!credentials.websockets?.length) {
  throw new Error("the credentials name no websocket: start the control plane with --websocket 127.0.0.1:8222");
}
const prefix = credentials.prefix ? `${credentials.prefix}.` : "";
const bus = await wsconnect({
  servers: credentials.websockets,
  authenticator: nkeyAuthenticator(new TextEncoder().encode(credentials.seed)),
});

// call asks api.<verb>.<resource>.<namespace>[.<name>] and returns the message.
async function call(subject, body = "", header = {}) {
  const headers = newHeaders();
  for (const [key, value] of Object.entries(header)) headers.set(key, String(value));
  const payload = typeof body === "string" ? body : JSON.stringify(body);
  const answer = await bus.request(`${prefix}api.${subject}`, payload, { timeout: 40_000, headers });
  if (answer.headers?.get("Nats-Service-Error")) throw new Refused(answer.json());
  return answer;
}

// watch yields what happens to the deployment after a revision.
async function* watch(revision) {
  for (;;) {
    const options = { fieldSelector: `metadata.name=${name}`, resourceVersion: revision, timeoutSeconds: 20 };
    const reply = (await call(`watch.deployments.${namespace}`, options)).json();
    yield* reply.items;
    revision = reply.resourceVersion;
  }
}

async function until(revision, done) {
  for await (const event of watch(revision)) if (done(event)) return;
}

const ready = (d) => d.status?.observedGeneration === d.metadata.generation && d.status?.readyReplicas === d.spec.replicas;

async function exec(pod, command) {
  const session = randomBytes(16).toString("hex");
  await call(`exec.pods.${namespace}.${pod}`, { session, command });
  let output = "";
  for (let cursor = "0"; ; ) {
    const answer = await call(`recv.pods.${namespace}.${pod}`, "", {
      "Gantry-Session": session, "Gantry-Cursor": cursor, "Gantry-Wait": 20,
    });
    output += answer.string();
    cursor = answer.headers.get("Gantry-Cursor");
    if (answer.headers.get("Gantry-Eof") === "true") return { code: Number(answer.headers.get("Gantry-Exit-Code")), output };
  }
}

const applied = await call(`apply.deployments.${namespace}.${name}`, manifest);
const deployment = applied.json();
const revision = deployment.metadata.resourceVersion;
console.log(`deployment ${name} ${applied.headers.get("Gantry-Result")}`);

if (!ready(deployment)) await until(revision, (event) => ready(event.object));
console.log(`deployment ${name} ready`);

const labelSelector = Object.entries(manifest.spec.selector.matchLabels).map(([k, v]) => `${k}=${v}`).join(",");
const pods = (await call(`list.pods.${namespace}`, { labelSelector })).json().items;
const pod = pods[0].metadata.name;
// Lines come as they are kept: time, stream, F for a full line, and the line.
const log = (await call(`log.pods.${namespace}.${pod}`, { tailLines: 1 })).string();
console.log(`log of ${pod}: ${log.trim().split(" ").slice(3).join(" ")}`);

const { code, output } = await exec(pod, ["/web", "get", "http://127.0.0.1:8080/"]);
console.log(`exec in ${pod}: exit ${code}: ${output.trim()}`);

try {
  await call(`create.deployments.${namespace}.${name}`, { ...manifest, spec: { ...manifest.spec, replicas: -1 } });
} catch (refused) {
  if (!(refused instanceof Refused)) throw refused;
  console.log(`refused: ${refused.status.reason}: ${refused.status.message}`);
}

await call(`delete.deployments.${namespace}.${name}`, { propagationPolicy: "Foreground" });
await until(revision, (event) => event.type === "DELETED");
console.log(`deployment ${name} deleted`);

await bus.close();
process.exitCode = code;
