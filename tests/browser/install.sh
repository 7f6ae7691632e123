#!/usr/bin/env bash
# Installs Debian's Chromium, without asking for a password: as root, or by a sudo that needs none.
set -euo pipefail
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo -n)
  if ! sudo -n true 2>/dev/null; then
    echo "chromium is not installed: neither root nor a sudo without a password" >&2
    exit 1
  fi
fi
if ! command -v apt-get >/dev/null; then
  echo "chromium is not installed: there is no apt-get here" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null
chromium --version
