#!/bin/sh
# Makes the user of the services, and tells systemd of them. Nothing is started that was not running: there is no configuration yet.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
  systemd-sysusers reverse-http.conf
elif ! getent passwd reverse-http >/dev/null; then
  useradd --system --user-group --home-dir /var/lib/reverse-http --shell /usr/sbin/nologin reverse-http
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # what runs goes on as the new release; its tunnels may finish first
  for part in proxy agent lb; do systemctl try-restart --no-block "reverse-http-$part.service" || true; done
fi
