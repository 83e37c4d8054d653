#!/usr/bin/env bash
# Installs what the tests need beside Node.js and Rust, where it is missing: Debian's packages, as root.
set -euo pipefail

missing=()
need() { # FILE OR COMMAND, PACKAGE
  PATH="$PATH:/usr/sbin" command -v "$1" > /dev/null || [ -e "$1" ] || missing+=("$2")
}
need nginx nginx
need /usr/lib/nginx/modules/ngx_stream_module.so libnginx-mod-stream

if [ ${#missing[@]} -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # tests start the servers themselves
  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
