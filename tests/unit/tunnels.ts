// Tunnels through a proxy and an agent on the in-memory network, for several files of tests.
import assert from "node:assert/strict";
import type { Proxy } from "../../proxy/proxy.ts";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import type { ClientProtocol } from "../../shared/frontend/client_protocol.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { TcpListener } from "../../shared/net/tcp.ts";
import type { Dialer, TunnelRequest } from "../../shared/tunnel/request.ts";
import { connectTo, LogBook, Queue, readUntil, streamPair } from "../../testing/network.ts";
import { bytes, readTextExactly, type TcpServer, within } from "../conformance/support.ts";

/** The id of the agent that {@link connectRequest} names. */
export const AGENT_ID = "4711";

/** Both ends of a tunnel. */
export interface Tunnel {
  client: Duplex;
  server: Duplex;
}

/** A request for a tunnel to `origin`. */
export function connectRequest(origin: TcpServer, password = "x"): string {
  const credentials = `Proxy-Authorization: Basic ${btoa(`${AGENT_ID}:${password}`)}`;
  return `CONNECT 127.0.0.1:${origin.port} HTTP/1.1\r\nHost: a\r\n${credentials}\r\n\r\n`;
}

/** Opens a tunnel to an origin that reads a head first, and sends it one. */
export async function openTunnel(net: Net, proxy: Proxy, origin: TcpServer, password?: string): Promise<Tunnel> {
  const client = await connectTo(net, proxy.clientAddress);
  await client.write(bytes(connectRequest(origin, password)));
  assert.match(await readUntil(client, "\r\n\r\n"), /^HTTP\/1\.1 200 /);
  await client.write(bytes("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
  const { stream: server } = await within(origin.request());
  return { client, server };
}

/** Checks that both directions carry bytes. */
export async function checkTunnel({ client, server }: Tunnel): Promise<void> {
  await client.write(bytes("there"));
  assert.equal(await readTextExactly(server, 5), "there");
  await server.write(bytes("back"));
  assert.equal(await readTextExactly(client, 4), "back");
}

/** A frontend whose dials the test answers. */
export interface FrontendBench {
  readonly net: Net;
  readonly log: LogBook;
  readonly frontend: Frontend;
  readonly dialled: Queue<{ request: TunnelRequest; far: Duplex }>;
  /** That clients connect to. */
  readonly address: string;
}

/** Serves clients of a listener without authentication, unless the options say otherwise. */
export async function withFrontend(
  net: Net,
  { listener, protocol }: { readonly listener: TcpListener; readonly protocol: ClientProtocol },
  options: Partial<FrontendOptions>,
  body: (bench: FrontendBench) => Promise<void>,
): Promise<void> {
  const [log, dialled] = [new LogBook(), new Queue<{ request: TunnelRequest; far: Duplex }>()];
  const frontend = new Frontend({
    net,
    log,
    listeners: [{ listener, protocol }],
    authenticator: createNoAuth(),
    allowList: createAllowList([]),
    dial: recordDials(dialled),
    ...options,
  });
  await body({ net, log, frontend, dialled, address: listener.address });
  frontend.close();
  await within(frontend.done);
}

/** A dialer that connects each request to a stream, whose far end the test gets. */
export function recordDials(dialled: Queue<{ request: TunnelRequest; far: Duplex }>): Dialer {
  return (request) => {
    const { near, far } = streamPair("session");
    dialled.push({ request, far });
    return Promise.resolve({ stream: near });
  };
}
