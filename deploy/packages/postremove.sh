#!/bin/sh
# Certificates created by the services are deleted on purge; the user stays, so that its files keep an owner.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "${1:-}" = purge ]; then
  rm -rf /var/lib/reverse-http
  # it stays if it has keys
  rmdir /etc/reverse-http/private /etc/reverse-http 2>/dev/null || true
fi
