// One request across lb, proxy and agent in one trace, as a collector gets it by OTLP. With the compiled executables.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { eventually, Pair, Site, storeArgs } from "../../testing/programs.ts";
import { ask, credentials, dial, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

/** A span as OTLP has it in JSON. */
interface OtlpSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly { readonly key: string; readonly value: Readonly<Record<string, unknown>> }[];
  readonly status: { readonly code?: number; readonly message?: string };
}

interface ReceivedSpan extends OtlpSpan {
  readonly service: string;
  /** By key. */
  readonly values: Readonly<Record<string, unknown>>;
}

const valuesOf = (attributes: OtlpSpan["attributes"]) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));

/** A collector that keeps what it gets. */
class Collector implements AsyncDisposable {
  readonly spans: ReceivedSpan[] = [];
  readonly fields: NodeJS.Dict<string | string[]>[] = [];

  private constructor(readonly server: Server) {
    server.on("request", (request, response) => {
      const parts: Uint8Array[] = [];
      request.on("data", (part: Uint8Array) => parts.push(part));
      request.on("end", () => {
        this.fields.push({ url: request.url, ...request.headers });
        const { resourceSpans } = JSON.parse(Buffer.concat(parts).toString());
        for (const { resource, scopeSpans } of resourceSpans) {
          const service = String(valuesOf(resource.attributes)["service.name"]);
          for (const span of scopeSpans.flatMap(({ spans }: { spans: OtlpSpan[] }) => spans)) {
            this.spans.push({ ...span, service, values: valuesOf(span.attributes) });
          }
        }
        response.setHeader("Content-Type", "application/json").end("{}");
      });
    });
  }

  static async start(): Promise<Collector> {
    const server = createServer();
    const collector = new Collector(server);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return collector;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** The spans of a trace. */
  trace(traceId: string): ReceivedSpan[] {
    return this.spans.filter((span) => span.traceId === traceId);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, "close");
  }
}

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN = "b7ad6b7169203331";

function traced(traceId: string, sampled: boolean): string {
  return `traceparent: 00-${traceId}-${CLIENT_SPAN}-0${sampled ? 1 : 0}\r\ntracestate: vendor=1\r\n`;
}

describe("a trace", () => {
  it("has one request through lb, proxy and agent, from the client's span to the agent's connection", async () => {
    await using collector = await Collector.start();
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(async (wire) => {
      for (let data; (data = await wire.next()) !== null;) await wire.write(data);
      wire.finish();
    });
    const fields = site.folder.write("fields", "# for the collector\nX-Scope-OrgID: tenant-1\n");
    const args = [`--tracing.otlp-endpoint=${collector.url}`, "--tracing.sampling-ratio=0", `--tracing.otlp-headers-file=${fields}`];
    const audit = join(site.folder.path, "audit.jsonl");
    const { proxy, addresses } = await site.startProxy([...storeArgs(cache), ...args, `--audit.file=${audit}`]);
    const agent = await site.startAgent(addresses, args);
    const { lb, clients } = await site.startLb(cache, args);
    const head = (fields: string) => `CONNECT ${origin.authority} HTTP/1.1\r\nHost: ${origin.authority}\r\n${fields}${credentials()}\r\n`;
    {
      using tunnel = await dial(clients);
      await tunnel.write(`${head(traced(TRACE, true))}hello`);
      await tunnel.readUntil("\r\n\r\n");
      assert.equal((await tunnel.read(5)).toString(), "hello");
      tunnel.finish();
      await tunnel.readAll();
    }
    // not recorded, but known to all logs
    const unsampled = "1".repeat(32);
    using other = await dial(clients);
    await other.write(head(traced(unsampled, false)));
    await other.readUntil("\r\n\r\n");
    other.finish();
    await other.readAll();
    await agent.waitFor("tunnel", { trace_id: unsampled });
    for (const program of [lb, proxy, agent]) assert.equal((await program.stop()).exitCode, 0); // sends what it has
    const { spans } = collector;
    assert.ok(spans.every(({ traceId }) => traceId === TRACE));
    const byId = new Map(spans.map((span) => [span.spanId, span]));
    const path = (span: ReceivedSpan): string => {
      const parent = byId.get(span.parentSpanId ?? "");
      if (parent === undefined) assert.equal(span.parentSpanId, CLIENT_SPAN);
      return `${parent === undefined ? "" : `${path(parent)} > `}${span.service.replace("reverse-http-", "")} ${span.name}`;
    };
    assert.deepEqual(spans.map(path).sort(), [
      "lb CONNECT",
      "lb CONNECT > lb dial proxy",
      "lb CONNECT > lb dial proxy > proxy CONNECT",
      "lb CONNECT > lb dial proxy > proxy CONNECT > proxy dial agent",
      "lb CONNECT > lb dial proxy > proxy CONNECT > proxy dial agent > agent CONNECT",
      "lb CONNECT > lb dial proxy > proxy CONNECT > proxy dial agent > agent CONNECT > agent connect",
      "lb CONNECT > lb look up agent",
    ]);
    const of = (service: string, name: string) => spans.find((span) => span.service === service && span.name === name)!;
    const { values, kind, status } = of("reverse-http-proxy", "CONNECT");
    assert.equal(kind, 2); // server
    assert.notEqual(status.code, 2);
    assert.deepEqual(
      [values["http.response.status_code"], values["server.port"], values["reverse_http.sent"], values["reverse_http.agent.id"]],
      [200, origin.port, 5, "4711"],
    );
    assert.equal(of("reverse-http-agent", "connect").values["network.peer.port"], origin.port);
    assert.equal(of("reverse-http-lb", "look up agent").values["db.system.name"], "memcached");
    assert.deepEqual([collector.fields[0]!["url"], collector.fields[0]!["x-scope-orgid"]], ["/v1/traces", "tenant-1"]);
    for (const [program, message] of [[lb, "request"], [proxy, "request"], [agent, "tunnel"]] as const) {
      await program.waitFor(message, { trace_id: TRACE });
    }
    const audited = new RegExp(`"event":"start".*"trace_id":"${TRACE}"`);
    await eventually(() => audited.test(readFileSync(audit, "utf8")), () => readFileSync(audit, "utf8"));
  });

  it("has the cause of a failure, and goes on to the server of a plain request", async () => {
    await using collector = await Collector.start();
    await using pair = await Pair.start({ proxy: [`--tracing.otlp-endpoint=${collector.url}`] });
    const { clients } = pair.addresses;
    await using closed = await Origin.start();
    closed.server.close();
    assert.equal((await ask(clients, `CONNECT ${closed.authority} HTTP/1.1\r\n${traced(TRACE, true)}${credentials()}\r\n`)).status, 502);
    let received = "";
    await using origin = await Origin.start(async (wire) => {
      received = await wire.readUntil("\r\n\r\n");
      await wire.write("HTTP/1.1 204 No Content\r\n\r\n");
      wire.finish();
    });
    const trace = "2".repeat(32);
    const head = `GET http://${origin.authority}/ HTTP/1.1\r\nHost: x\r\n${traced(trace, true)}${credentials()}\r\n`;
    assert.equal((await ask(clients, head)).status, 204);
    assert.equal((await pair.proxy.stop()).exitCode, 0); // sends what it has
    const failed = collector.trace(TRACE);
    assert.equal(failed.length, 2);
    for (const { kind, values, status } of failed) {
      assert.deepEqual([values["error.type"], status.code], ["connection_refused", 2]);
      assert.match(status.message ?? "", /refused the connection/);
      assert.ok(kind === 2 || kind === 3);
    }
    const request = collector.trace(trace).find(({ name }) => name === "GET")!;
    const parents = [...received.matchAll(/^traceparent: (.*)$/gm)].map(([, value]) => value!.trim());
    assert.deepEqual(parents, [`00-${trace}-${request.spanId}-01`]);
    assert.match(received, /^tracestate: vendor=1\r$/m);
  });

  it("delays nothing while the collector does not respond", async () => {
    await using silent = await Origin.start(); // accepts, and never responds
    await using pair = await Pair.start({ proxy: [`--tracing.otlp-endpoint=http://${silent.authority}`] });
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish()));
    const open = async () => {
      using tunnel = await dial(pair.addresses.clients);
      await tunnel.write(`CONNECT ${origin.authority} HTTP/1.1\r\n${credentials()}\r\n`);
      assert.match(await tunnel.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /);
    };
    for (let i = 0; i < 300; i++) await open(); // two spans each: more than a batch
    using _request = await silent.accept();
    for (let i = 0; i < 20; i++) await open();
  });

  it("that the collector does not accept is told of, with the reason", async () => {
    await using refusing = await Origin.start(async (wire) => {
      await wire.readUntil("\r\n\r\n");
      await wire.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 8\r\nConnection: close\r\n\r\nno token");
      wire.finish();
    });
    await using pair = await Pair.start({ proxy: [`--tracing.otlp-endpoint=http://${refusing.authority}`] });
    await ask(pair.addresses.clients, `CONNECT 127.0.0.1:1 HTTP/1.1\r\n${credentials()}\r\n`);
    assert.equal((await pair.proxy.stop()).exitCode, 0);
    const { reason, endpoint } = await pair.proxy.waitFor("traces cannot be exported");
    assert.match(String(reason), /401.*no token/);
    assert.equal(endpoint, `http://${refusing.authority}/v1/traces`);
  });
});
