// Tunnels open and close quickly while every part is killed at random: in the audit log every start has one end, whatever the kill has cut
// off. REVERSE_HTTP_TEST_LOAD=full opens 100,000.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Addresses, AGENT, LB, type Program, PROXY, Site, storeArgs } from "../../testing/programs.ts";
import { credentials, dial, Origin } from "../../testing/sockets.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";

const FULL = process.env["REVERSE_HTTP_TEST_LOAD"] === "full";
/** Tunnels that clients have opened at the end, and after how many a part is killed. */
const [TUNNELS, KILL_AFTER] = FULL ? [100_000, 400] : [400, 60];
/** Tunnels that are opened at once. */
const CONCURRENCY = 24;
const AGENTS = ["a", "b"];

interface Line {
  readonly event: string;
  readonly id: string;
  readonly tunnel: string;
  readonly outcome?: string;
}

/** What an audit log has, and what is wrong with it. */
interface Findings {
  /** The request ids of all starts. */
  readonly started: Set<string>;
  readonly outcomes: Record<string, number>;
  /** Lines that a kill has cut off. */
  torn: number;
  readonly problems: string[];
}

function examine(file: string): Findings {
  const findings: Findings = { started: new Set(), outcomes: {}, torn: 0, problems: [] };
  const open = new Set<string>();
  for (const text of readFileSync(file, "utf8").split("\n")) {
    if (text === "") continue;
    let line: Line;
    try {
      line = JSON.parse(text);
    } catch {
      findings.torn++;
      continue;
    }
    const { event, id, tunnel, outcome = "" } = line;
    if (event === "start") {
      if (open.has(tunnel)) findings.problems.push(`${tunnel} starts twice`);
      open.add(tunnel);
      findings.started.add(id);
    } else if (event === "end") {
      if (!open.delete(tunnel)) findings.problems.push(`${tunnel} ends without a start, or twice`);
      findings.outcomes[outcome] = (findings.outcomes[outcome] ?? 0) + 1;
    }
  }
  for (const tunnel of open) findings.problems.push(`${tunnel} has no end`);
  return findings;
}

/** A program that is started again when it is killed. */
class Part {
  #program: Program;
  kills = 0;

  constructor(readonly name: string, readonly start: () => Program, readonly ready: (program: Program) => Promise<unknown>) {
    this.#program = start();
  }

  async untilReady(): Promise<void> {
    await this.ready(this.#program);
  }

  async kill(): Promise<void> {
    this.kills++;
    this.#program.signal("SIGKILL");
    await this.#program.ended;
    this.#program = this.start();
    await this.untilReady();
  }

  async stop(): Promise<void> {
    const { exitCode } = await this.#program.stop();
    assert.equal(exitCode, 0, `${this.name} has ended with ${exitCode}: ${this.#program.said}`);
  }
}

describe("the audit logs of proxies and lb", () => {
  it("have one end for each start while every part is killed at random", async (t) => {
    await using site = await Site.create();
    await using cache = await StoreServer.start("memcached");
    await using origin = await Origin.start(async (wire) => {
      for (let data; (data = await wire.next()) !== null;) await wire.write(data);
      wire.finish();
    });
    const address = async () => `127.0.0.1:${await freePort()}`;
    const proxies: Addresses[] = [];
    for (const _ of AGENTS) proxies.push({ agents: await address(), clients: await address() });
    const balancer = await address();
    const files = ["proxy-0", "proxy-1", "lb"].map((name) => join(site.folder.path, `${name}.jsonl`));
    const audit = (i: number) => [`--audit.file=${files[i]}`, "--audit.strict", "--drain.timeout=0s", "--log.level=warn"];
    const both = proxies.map(({ agents }) => agents).join(",");
    const untilListening = (at: string) => async () => {
      for (;;) {
        const wire = await dial(at).catch(() => undefined);
        if (wire) return wire[Symbol.dispose]();
        await sleep(10);
      }
    };
    const parts = [
      ...proxies.map((at, i) => {
        const args = [...site.proxyArgs(at), ...storeArgs(cache), ...audit(i), `--store.http-proxy-address=${at.clients}`];
        return new Part(`proxy ${i}`, () => site.start(PROXY, args), untilListening(at.clients));
      }),
      new Part(
        "lb",
        () => site.start(LB, [`--http-proxy.listen-address=${balancer}`, ...storeArgs(cache), "--log.format=json", ...audit(2)]),
        untilListening(balancer),
      ),
      ...AGENTS.map((id) => {
        const args = [...site.agentArgs({ agents: both, clients: "" }, id), "--log.level=info", "--drain.timeout=0s"];
        return new Part(`agent ${id}`, () => site.start(AGENT, args), (program) => program.waitFor("connected"));
      }),
    ];
    for (const part of parts) await part.untilReady();

    const opened: string[] = [];
    let [asked, isEnough] = [0, false];
    /** One client: its tunnel carries a few bytes, and ends in one of four ways. Whatever a kill cuts off is no error. */
    const use = async (): Promise<void> => {
      const n = asked++;
      const agent = AGENTS[n % AGENTS.length]!;
      const through = n % 3 === 0 ? proxies[n % 2]!.clients : balancer;
      // a client may use an id for several requests at once
      const id = n % 10 === 9 ? "reused" : `r${n}`;
      const wire = await dial(through);
      try {
        await wire.write(
          `CONNECT ${origin.authority} HTTP/1.1\r\nHost: ${origin.authority}\r\nX-Request-Id: ${id}\r\n${credentials(agent)}\r\n`,
        );
        if (n % 17 === 0) return; // without waiting for the answer
        if (!(await wire.readUntil("\r\n\r\n")).startsWith("HTTP/1.1 200 ")) return await sleep(20);
        opened.push(id);
        await wire.write("hello");
        if (n % 4 === 0) return wire.reset();
        await wire.read(5);
        if (n % 4 === 1) return;
        wire.finish();
        await wire.readAll();
      } finally {
        wire[Symbol.dispose]();
      }
    };
    const client = async () => {
      while (!isEnough) await use().catch(() => sleep(5)); // the part is down
    };
    const clients = Array.from({ length: CONCURRENCY }, client);
    while (opened.length < TUNNELS) {
      const inRandomOrder = parts.map((part) => ({ part, at: Math.random() })).sort((a, b) => a.at - b.at);
      for (const { part } of inRandomOrder) {
        const next = opened.length + KILL_AFTER;
        while (opened.length < next) await sleep(1);
        await part.kill();
      }
    }
    isEnough = true;
    await Promise.all(clients);
    for (const part of parts) await part.stop();

    const findings = files.map(examine);
    const kills = parts.map(({ name, kills }) => `${name} ${kills}`).join(", ");
    t.diagnostic(`${opened.length} of ${asked} tunnels opened; kills: ${kills}`);
    findings.forEach(({ started, outcomes, torn }, i) => {
      t.diagnostic(`${files[i]!.split("/").at(-1)}: ${started.size} ids started, torn ${torn}, ${JSON.stringify(outcomes)}`);
    });
    for (const { problems } of findings) assert.deepEqual(problems.slice(0, 10), []);
    const missing = opened.filter((id) => !findings.some(({ started }) => started.has(id)));
    assert.deepEqual(missing.slice(0, 10), [], `${missing.length} tunnels were opened without a start`);
  });
});
