#!/usr/bin/env bash
# prom-client renames counters for good when metrics are served as OpenMetrics once.
#
# Versions: prom-client 15.1.3 (Node.js 20).
# Behaviour: a registry can serve the Prometheus text format or OpenMetrics, which omits `_total` in the lines that describe a counter. To do
#   so, the registry changes the name of the counter itself. When it serves the Prometheus format again, the samples are named `requests`
#   instead of `requests_total`.
# Output seen: "before: requests_total 1", "as OpenMetrics: requests_total 1", "after: requests 1".
# Why users care: a server that chooses the format by the Accept header, as scrapers expect, loses the series of all counters for every other
#   scraper after the first one that asks for OpenMetrics. Rates and alerts on them stop without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund prom-client@15.1.3

cat > counter.mjs <<'JS'
import client from "prom-client";
const registry = new client.Registry();
new client.Counter({ name: "requests_total", help: "Requests.", registers: [registry] }).inc();
const show = async (when) => console.log(`${when}: ${(await registry.metrics()).split("\n").find((line) => /^[a-z]/.test(line))}`);
await show("before");
registry.setContentType(client.Registry.OPENMETRICS_CONTENT_TYPE);
await show("as OpenMetrics");
registry.setContentType(client.Registry.PROMETHEUS_CONTENT_TYPE);
await show("after");
JS
seen=$(node counter.mjs)
echo "$seen"
expected=$'before: requests_total 1\nas OpenMetrics: requests_total 1\nafter: requests 1'
[ "$seen" = "$expected" ] || { echo "CHANGED: it was: $expected"; exit 1; }
