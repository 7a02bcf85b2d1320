#!/bin/sh
# Installs what building and running Gantry needs on Debian and Ubuntu, and
# says what is missing elsewhere. Runs any number of times; does nothing where
# all is there. An argument adds the packages of one more purpose: cgroup2 or
# automation.
set -eu

need="gcc libc6-dev pkg-config libseccomp-dev iproute2 nftables ca-certificates"
for purpose in "$@"; do
	case "$purpose" in
	cgroup2) need="$need user-mode-linux kmod" ;;
	automation) # whichever Python, jq and Node are there will do
		command -v python3 >/dev/null || need="$need python3-minimal"
		command -v jq >/dev/null || need="$need jq"
		command -v node >/dev/null || need="$need nodejs"
		command -v npm >/dev/null || need="$need npm"
		;;
	*) echo "setup: unknown purpose '$purpose': cgroup2 and automation are known" >&2; exit 2 ;;
	esac
done

command -v go >/dev/null || { echo "setup: Go is missing: install it from your distribution or from go.dev" >&2; exit 1; }

if ! command -v dpkg-query >/dev/null; then
	command -v gcc >/dev/null && pkg-config --exists libseccomp 2>/dev/null && exit 0
	echo "setup: this is neither Debian nor Ubuntu: install by hand what these packages hold: $need" >&2
	exit 1
fi

missing=""
for p in $need; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else
		command -v sudo >/dev/null || { echo "setup: needs root to install:$missing" >&2; exit 1; }
		sudo "$@"
	fi
}

updated=
update() {
	[ -n "$updated" ] || as_root apt-get update -qq
	updated=yes
}

if [ -n "$missing" ]; then
	echo "setup: installing$missing"
	update
	# shellcheck disable=SC2086 # the list is words on purpose
	DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# The registry is taken out of its package instead of being installed: the
# package would start a service on port 5000.
cache="$(dirname "$0")/../.cache"
if ! command -v docker-registry >/dev/null && [ ! -x "$cache/bin/docker-registry" ]; then
	echo "setup: fetching docker-registry"
	work="$(mktemp -d)"
	trap 'rm -rf "$work"' EXIT
	if (cd "$work" && { apt-get download -qq docker-registry 2>/dev/null || { update && apt-get download -qq docker-registry; }; } && dpkg-deb -x docker-registry_*.deb x); then
		mkdir -p "$cache/bin"
		cp "$work/x/usr/bin/docker-registry" "$cache/bin/docker-registry.tmp"
		mv "$cache/bin/docker-registry.tmp" "$cache/bin/docker-registry"
	else
		echo "setup: docker-registry cannot be had: the embedded registry serves instead" >&2
	fi
fi
