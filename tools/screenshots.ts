// Takes the pictures of the documents, docs/dashboard.png and docs/top.svg, of a proxy with some agents and clients at work. They run for two
// minutes. Run by Bun: `deno task screenshots`.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";
import { drawTop, initialState } from "../admin/top.ts";
import type { AgentState, Page, Status, TunnelState } from "../shared/service/api/types.ts";
import { CHROMIUM } from "../testing/chromium.ts";
import { Site } from "../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin, type Wire } from "../testing/sockets.ts";
import { ROOT } from "./executables.ts";
import { terminalPicture } from "./terminal_picture.ts";

const AGENTS = ["berlin-1", "berlin-2", "lisbon-1", "oslo-1", "paris-1", "paris-2", "porto-1", "warsaw-1"];
const TOKEN = "the-token-of-an-operator-for-pictures";
const DURATION_MS = 120_000;
/** Shown in place of this machine's name. */
const HOST = "proxy.example";

const random = (max: number) => Math.floor(Math.random() * max);

/** A server that sends at changing rates for up to a minute. */
async function serve(wire: Wire): Promise<void> {
  wire.ending().catch(() => {}); // reads what the client sends
  const size = 2 ** (8 + random(10));
  for (let left = 5 + random(300); left > 0; left--) {
    await wire.write(new Uint8Array(size * (1 + random(4))));
    await sleep(50 + random(200));
  }
  wire.finish();
}

/** Clients that open tunnels, read and close them, until the signal. */
async function work(clients: string, destinations: readonly string[], signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const [id, destination] = [AGENTS[random(AGENTS.length)]!, destinations[random(destinations.length)]!];
    using wire = await openTunnel(clients, destination, { id });
    await wire.write(new Uint8Array(64 + random(1_000_000)));
    await Promise.race([wire.ending(), new Promise((resolve) => signal.addEventListener("abort", resolve))]);
  }
}

/** Requests that are refused now and then, until the signal. */
async function fail(clients: string, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await sleep(500 + random(3_000));
    const [authority, id] = random(3) === 0 ? ["127.0.0.1:9", "gone-1"] : ["127.0.0.1:9", AGENTS[0]];
    await ask(clients, connectHead(authority!, id));
  }
}

async function takePage(url: string, file: string): Promise<void> {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage({ viewport: { width: 1440, height: 760 }, colorScheme: "light" });
    await page.route("**/api/v1/status?", async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, json: { ...await response.json() as Status, host: HOST } });
    });
    await page.goto(url);
    await page.getByLabel("Token").fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.locator("canvas").first().waitFor();
    await page.waitForResponse(/history/).catch(() => {});
    await sleep(3_000);
    await page.screenshot({ path: file });
  } finally {
    await browser.close();
  }
}

async function takeTop(url: string, file: string): Promise<void> {
  const get = async <T>(path: string): Promise<T> => {
    const response = await fetch(`${url}api/v1/${path}`, { headers: { Authorization: `Bearer ${TOKEN}` } });
    return await response.json() as T;
  };
  const status = { ...await get<Status>("status"), host: HOST };
  const tunnels = await get<Page<TunnelState>>("tunnels?sort=rate&order=desc&limit=15");
  const agents = await get<Page<AgentState>>("agents");
  const size = { columns: 120, rows: 20 };
  writeFileSync(file, terminalPicture(drawTop(initialState(), { status, tunnels, agents }, size), size));
}

await using site = await Site.create();
const tokens = site.folder.write("admin-tokens", `operator anna ${TOKEN}\n`);
const { proxy, addresses } = await site.startProxy(["--admin.listen-address=:0", `--admin.token-file=${tokens}`]);
for (const id of AGENTS) await site.startAgent(addresses, [`--agent-client.labels=site=${id.split("-")[0]}`], id);
await using first = await Origin.start(serve);
await using second = await Origin.start(serve, "127.0.0.2");
await using third = await Origin.start(serve, "127.0.0.3");
const stop = new AbortController();
const destinations = [first, second, third].map(({ authority }) => authority);
const working = [
  ...Array.from({ length: 40 }, () => work(addresses.clients, destinations, stop.signal)),
  fail(addresses.clients, stop.signal),
];
await Promise.race([sleep(DURATION_MS), ...working]);
const url = `http://${(await proxy.waitFor("listening")).admin}/`;
await takePage(url, join(ROOT, "docs", "dashboard.png"));
await takeTop(url, join(ROOT, "docs", "top.svg"));
stop.abort();
await Promise.all(working);
