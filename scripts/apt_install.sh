#!/usr/bin/env bash
# Install Debian packages as root or through sudo, saying which. usage: scripts/apt_install.sh PACKAGE...
set -euo pipefail

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "error: these packages are missing and this user cannot install them: $*" >&2
        echo "       as root: apt-get install $*" >&2
        exit 1
    fi
    as_root=(sudo)
fi

echo "installing packages (the first time this can take a few minutes): $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1
}
# The package lists may be missing or old: refresh them when the first try fails.
if ! install "$@"; then
    "${as_root[@]}" apt-get update -qq >/dev/null || true
    if ! install "$@"; then
        tail -n 20 "$log" >&2
        echo "error: apt-get could not install: $*" >&2
        exit 1
    fi
fi
