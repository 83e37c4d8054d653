#!/usr/bin/env bash
# Installs the servers and clients that the tests run, where they are missing: Debian's packages, as root. Quick where all is there.
set -euo pipefail

missing=()
need() { # COMMAND OR FILE, PACKAGE
  PATH="$PATH:/usr/sbin" command -v "$1" > /dev/null || [ -e "$1" ] || missing+=("$2")
}
need nginx nginx
need /usr/lib/nginx/modules/ngx_stream_module.so libnginx-mod-stream
need curl curl
need git git
need ssh openssh-client
need sshd openssh-server
need socat socat
need python3 python3
need strace strace
need go golang-go
# Ubuntu has it as a snap alone
grep -q '^ID=ubuntu' /etc/os-release || need chromium chromium
python3 -c 'import requests' 2> /dev/null || /usr/bin/python3 -c 'import requests' 2> /dev/null || missing+=(python3-requests)
need memcached memcached
need redis-server redis-server
need "$(echo /usr/lib/*/faketime/libfaketime.so.1)" libfaketime

if [ ${#missing[@]} -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # tests start the servers themselves
  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
