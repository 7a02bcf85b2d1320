#!/bin/sh
# Apply a manifest, wait until it is ready, read a log, run a command, clean up:
# with the `nats` command line and jq.
#
#   automate.sh MANIFEST.json
#
# GANTRY_NATS_CONTEXT names the context file of the nats command; the control
# plane writes one next to its administrator's credentials.
set -eu

manifest=$1
context=${GANTRY_NATS_CONTEXT:-/var/lib/gantry/controlplane/credentials/nats-context.json}
name=$(jq -r .metadata.name "$manifest")
namespace=$(jq -r '.metadata.namespace // "default"' "$manifest")

# call SUBJECT BODY: the body of the answer; a refusal ends the script
call() {
	answer=$(nats --context "$context" req --raw --timeout 40s "$1" "$2")
	if printf %s "$answer" | jq -e '.kind? == "Status" and .status? == "Failure"' >/dev/null 2>&1; then
		printf %s "$answer" | jq -r '"refused: \(.reason): \(.message)"' >&2
		return 1
	fi
	printf '%s\n' "$answer"
}

# header NAME: its value in the last answer of recv; nats prints headers with the time before
header() { sed -n "s/^[0-9:]* $1: //p" "$headers" | head -n 1; }

headers=$(mktemp)
trap 'rm -f "$headers"' EXIT

# watch FILTER: follow the deployment until an event passes the filter
watch() {
	while :; do
		reply=$(call "api.watch.deployments.$namespace" \
			"{\"fieldSelector\": \"metadata.name=$name\", \"resourceVersion\": \"$revision\", \"timeoutSeconds\": 20}")
		revision=$(printf %s "$reply" | jq -r .resourceVersion)
		if printf %s "$reply" | jq -e "any(.items[]; $1)" >/dev/null; then
			return
		fi
	done
}

deployment=$(call "api.apply.deployments.$namespace.$name" "$(cat "$manifest")")
echo "deployment $name applied"

ready='.status.observedGeneration == .metadata.generation and .status.readyReplicas == .spec.replicas'
revision=$(printf %s "$deployment" | jq -r .metadata.resourceVersion)
if ! printf %s "$deployment" | jq -e "$ready" >/dev/null; then
	watch ".object | $ready"
fi
echo "deployment $name ready"

labels=$(jq -r '.spec.selector.matchLabels | to_entries | map("\(.key)=\(.value)") | join(",")' "$manifest")
pod=$(call "api.list.pods.$namespace" "{\"labelSelector\": \"$labels\"}" | jq -r '.items[0].metadata.name')
# Lines come as they are kept: time, stream, F for a full line, and the line.
echo "log of $pod: $(nats --context "$context" req --raw --timeout 40s "api.log.pods.$namespace.$pod" '{"tailLines": 1}' | cut -d ' ' -f 4-)"

# A command: open a session, then receive until its end.
session=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
call "api.exec.pods.$namespace.$pod" \
	"{\"session\": \"$session\", \"command\": [\"/web\", \"get\", \"http://127.0.0.1:8080/\"]}" >/dev/null
cursor=0 output=
while :; do
	output=$output$(nats --context "$context" req --timeout 40s "api.recv.pods.$namespace.$pod" '' \
		-H "Gantry-Session: $session" -H "Gantry-Cursor: $cursor" -H 'Gantry-Wait: 20' 2>"$headers" |
		sed '/^nil body$/d') # what nats prints of an empty answer
	cursor=$(header Gantry-Cursor)
	if [ "$(header Gantry-Eof)" = true ]; then
		code=$(header Gantry-Exit-Code)
		break
	fi
	[ -n "$cursor" ] || { cat "$headers" >&2; exit 1; }
done
echo "exec in $pod: exit $code: $output"
[ "$code" = 0 ]

# The same rules as at the command line.
if call "api.create.deployments.$namespace.$name" "$(jq '.spec.replicas = -1' "$manifest")" 2>&1; then
	echo "a negative number of replicas was taken" >&2
	exit 1
fi

call "api.delete.deployments.$namespace.$name" '{"propagationPolicy": "Foreground"}' >/dev/null
watch '.type == "DELETED"'
echo "deployment $name deleted"
