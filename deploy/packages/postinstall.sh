#!/bin/sh
# Creates the user of the services, and reloads systemd. Starts no service that was not running: there is no configuration yet.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
  systemd-sysusers reverse-http.conf
elif ! getent passwd reverse-http >/dev/null; then
  useradd --system --user-group --home-dir /var/lib/reverse-http --shell /usr/sbin/nologin reverse-http
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # running services restart with the new release, after their tunnels have drained
  for part in proxy agent lb; do systemctl try-restart --no-block "reverse-http-$part.service" || true; done
fi
