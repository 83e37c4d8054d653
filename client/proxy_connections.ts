// Connections to the proxy: one for each tunnel, or over HTTP/2 as few as it allows.
import { splitHostPort } from "../shared/address/host_port.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { Http2Connection } from "../shared/net/tcp.ts";
import type { ClientTls } from "../shared/net/tls.ts";

/** Time in milliseconds for which requests to a proxy without HTTP/2 use HTTP/1.1. */
const HTTP1_MS = 600_000;

/** How to connect. */
export interface ConnectOptions {
  /** `host:port`. */
  readonly proxy: string;
  /** Default: plain TCP. */
  readonly tls?: ClientTls;
  /** Use HTTP/2, if the proxy does. */
  readonly http2: boolean;
  /** Timeout in milliseconds. */
  readonly connectTimeout: number;
  /** Cancels with `cancelled`; a connection that others use as well is not closed. */
  readonly signal?: AbortSignal;
}

/** Connections that tunnels share. They close with the network. */
export class ProxyConnections {
  /** What `#open` and `#http1Until` are for. */
  #key = "";
  #open: Http2Connection[] = [];
  /** The proxy has no HTTP/2 until this time, as of `performance.now()`. */
  #http1Until = 0;
  #opening?: Promise<void>;
  /** The proxy without HTTP/2 that was reported last. */
  #reported = "";

  /** @param report takes a line for the user about a proxy without HTTP/2, once */
  constructor(private readonly net: Net, private readonly report: (line: string) => void = () => {}) {}

  /**
   * Returns a connection that speaks HTTP/1.1, or a stream of one that is like it. Over HTTP/2, `closed` of the stream's calls means that the
   * proxy has not processed its request: another stream may be tried.
   * @throws {NetError} as `connectTcp` of the network
   */
  async connect(options: ConnectOptions): Promise<Duplex> {
    const { proxy, tls, connectTimeout, signal } = options;
    const stream = options.http2 ? await this.#openStream(options) : undefined;
    return stream ?? await this.net.connectTcp({ ...splitHostPort(proxy), timeoutMs: connectTimeout, tls, signal });
  }

  /** Returns a stream; `undefined` if the proxy does not speak HTTP/2. */
  async #openStream(options: ConnectOptions): Promise<Duplex | undefined> {
    const { proxy, tls, signal } = options;
    const key = JSON.stringify([proxy, tls]);
    if (key !== this.#key) {
      for (const connection of this.#open) connection.release();
      [this.#key, this.#open, this.#http1Until, this.#opening] = [key, [], 0, undefined];
    }
    for (;;) {
      if (key !== this.#key || performance.now() < this.#http1Until) return undefined;
      const stream = await this.#fromOpen();
      if (stream !== undefined) return stream;
      this.#opening ??= this.#connect(key, options).finally(() => this.#opening = undefined);
      await untilAborted(this.#opening, signal);
    }
  }

  /** A stream of a connection that has one left. */
  async #fromOpen(): Promise<Duplex | undefined> {
    for (const connection of [...this.#open]) {
      try {
        return await connection.openStream();
      } catch (error) {
        if (!(error instanceof NetError)) throw error;
        if (error.code === "limit") continue;
        connection.release();
        this.#open = this.#open.filter((open) => open !== connection);
      }
    }
    return undefined;
  }

  async #connect(key: string, { proxy, tls, connectTimeout }: ConnectOptions): Promise<void> {
    try {
      const connection = await this.net.connectHttp2({ ...splitHostPort(proxy), timeoutMs: connectTimeout, tls });
      if (key === this.#key) this.#open.push(connection);
      else connection.release();
    } catch (error) {
      if (!(error instanceof NetError && error.code === "not-http2")) throw error;
      if (key === this.#key) this.#http1Until = performance.now() + HTTP1_MS;
      if (key === this.#reported) return;
      this.#reported = key;
      this.report(
        `${proxy} does not speak HTTP/2: each tunnel gets a connection of its own; set --proxy to the address of ` +
          "--http-proxy.http2-listen-address, or leave out --http2",
      );
    }
  }
}

/** Resolves as `promise` does. @throws {NetError} `cancelled` */
async function untilAborted(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return await promise;
  let abort!: () => void;
  const aborted = new Promise<never>((_, reject) => abort = () => reject(new NetError("cancelled", "The call was cancelled")));
  signal.addEventListener("abort", abort, { once: true });
  try {
    if (signal.aborted) abort();
    await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
