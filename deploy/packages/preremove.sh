#!/bin/sh
# Stops the services if the package is removed and not upgraded: deb passes remove, rpm 0.
set -e
case ${1:-} in
  remove | 0)
    if [ -d /run/systemd/system ]; then
      for part in proxy agent lb; do systemctl disable --now "reverse-http-$part.service" || true; done
      systemctl stop 'reverse-http-agent@*.service' || true
    fi
    ;;
esac
