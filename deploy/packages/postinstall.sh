#!/bin/sh
# Creates the user of the services, and reloads systemd. Starts no service that was not running: there is no configuration yet.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
  systemd-sysusers reverse-http.conf
elif ! getent passwd reverse-http >/dev/null; then
  useradd --system --user-group --home-dir /var/lib/reverse-http --shell /usr/sbin/nologin reverse-http
fi
# keys and tokens for the services: what root writes there with mode 0640 they can read, and other users cannot
mkdir -p /etc/reverse-http/private
chgrp reverse-http /etc/reverse-http/private
chmod 2750 /etc/reverse-http/private
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # new processes take over from running services, or these restart after their tunnels have drained
  for part in proxy agent 'agent@*' lb; do
    systemctl list-units --plain --no-legend --state=active "reverse-http-$part.service" | while read -r unit _; do
      action=try-restart
      if [ -S "/run/${unit%.service}/handover.sock" ]; then action=reload; fi
      systemctl "$action" --no-block "$unit" || true
    done
  done
fi
