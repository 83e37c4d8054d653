// The runtime's own sockets as peers of a network: servers, clients, and relays that can be cut.
import { Buffer } from "node:buffer";
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from "node:dgram";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import type { SessionKind } from "../../shared/net/session.ts";
import { until, within } from "./support.ts";

/** What a test made outside the network, closed after it. */
export interface Raw {
  /** A server of the runtime; its connections, as they come. */
  serve(): Promise<{ port: number; next: () => Promise<Socket>; server: Server }>;
  connect(port: number, host?: string): Promise<Socket>;
  udp(): Promise<UdpSocket>;
  relayTcp(port: number): Promise<TcpRelay>;
  /** A relay in front of a listener for sessions. */
  relay(kind: SessionKind, port: number): Promise<SessionRelay>;
  /** The port of a server that never answers a handshake. */
  silent(kind: SessionKind): Promise<number>;
}

/** Passes bytes on until it is told to end or reset the connection. */
export interface TcpRelay {
  port: number;
  /** Ends what the client gets, without a word from the server. */
  endClient(): void;
  /** Ends what the server gets, without a word from the client. */
  endServer(): void;
  resetClient(): void;
}

/** Passes on datagrams of one client, or bytes of any number of TCP connections. */
export interface SessionRelay {
  port: number;
  /** Whether it does, each way. What it does not pass is lost. */
  pass: { toServer: boolean; toClient: boolean };
  /** Sees what comes from the server. */
  onReply: (data: Uint8Array) => void;
  /** Datagrams from clients, or pieces of TCP streams. */
  received: number;
}

export async function withRaw(body: (raw: Raw) => Promise<void>): Promise<void> {
  const cleanUp: (() => void)[] = [];
  const keep = (socket: Socket): Socket => {
    socket.on("error", () => {}); // a test that wants to see it listens too
    cleanUp.push(() => socket.destroy());
    return socket;
  };
  const serve: Raw["serve"] = async () => {
    const arrived: Socket[] = [];
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => arrived.push(keep(socket)));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanUp.push(() => server.close());
    const next = async () => {
      await until(() => arrived.length > 0, "no connection arrived");
      return arrived.shift()!;
    };
    return { port: (server.address() as { port: number }).port, next, server };
  };
  const udp = async () => {
    const socket = createSocket("udp4");
    socket.bind(0, "127.0.0.1");
    await once(socket, "listening");
    socket.on("error", () => {});
    cleanUp.push(() => socket.close());
    return socket;
  };
  const connectTo: Raw["connect"] = async (port, host = "127.0.0.1") => {
    const socket = keep(connect({ port, host, allowHalfOpen: true, noDelay: true }));
    await within(once(socket, "connect"));
    return socket;
  };
  const relayTcp: Raw["relayTcp"] = async (port) => {
    const front = await serve();
    let client: Socket | undefined;
    let upstream: Socket | undefined;
    void front.next().then(async (socket) => {
      client = socket;
      const server = upstream = await connectTo(port);
      socket.pipe(server);
      server.on("data", (data) => socket.write(data));
    });
    return {
      port: front.port,
      endClient: () => client?.end(),
      endServer: () => upstream?.end(),
      resetClient: () => client?.resetAndDestroy(),
    };
  };
  const newRelay = (port: number): SessionRelay => ({ port, pass: { toServer: true, toClient: true }, onReply: () => {}, received: 0 });
  const relayUdp = async (port: number): Promise<SessionRelay> => {
    const socket = await udp();
    const relay = newRelay(socket.address().port);
    let client: RemoteInfo | undefined;
    socket.on("message", (data, from) => {
      if (from.port === port) {
        relay.onReply(data);
        if (relay.pass.toClient && client) socket.send(data, client.port, client.address);
        return;
      }
      client = from;
      relay.received++;
      if (relay.pass.toServer) socket.send(data, port, "127.0.0.1");
    });
    return relay;
  };
  const relayTcpSessions = async (port: number): Promise<SessionRelay> => {
    const { server, port: own } = await serve();
    const relay = newRelay(own);
    server.on("connection", (client) => {
      const upstream = keep(connect({ port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true }));
      client.on("data", (data) => {
        relay.received++;
        if (relay.pass.toServer) upstream.write(data);
      });
      upstream.on("data", (data) => {
        relay.onReply(Buffer.from(data));
        if (relay.pass.toClient) client.write(data);
      });
      client.on("end", () => relay.pass.toServer && upstream.end());
      upstream.on("end", () => relay.pass.toClient && client.end());
      client.on("error", () => relay.pass.toServer && upstream.resetAndDestroy());
      upstream.on("error", () => relay.pass.toClient && client.resetAndDestroy());
    });
    return relay;
  };
  const relay: Raw["relay"] = (kind, port) => kind === "quic" ? relayUdp(port) : relayTcpSessions(port);
  const silent: Raw["silent"] = async (kind) => {
    if (kind === "quic") return (await udp()).address().port;
    const { port, server } = await serve();
    server.on("connection", (socket) => socket.resume().on("end", () => socket.destroy())); // it keeps no descriptor
    return port;
  };
  try {
    await body({ serve, connect: connectTo, udp, relayTcp, relay, silent });
  } finally {
    for (const close of cleanUp.reverse()) close();
  }
}

/** How a raw connection ends: what was received, and `end` or the error's code. */
export function watch(socket: Socket): { received: () => string; ended: Promise<string> } {
  const parts: Uint8Array[] = [];
  socket.on("data", (data) => parts.push(Buffer.from(data)));
  const ended = new Promise<string>((resolve) => {
    socket.on("end", () => resolve("end"));
    socket.on("error", (error: Error & { code?: string }) => resolve(error.code ?? error.message));
    socket.on("close", () => resolve("close"));
  });
  return { received: () => Buffer.concat(parts).toString("latin1"), ended: within(ended, "the raw connection did not end") };
}
