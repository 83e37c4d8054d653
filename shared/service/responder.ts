// Answers HTTP requests with short texts, one for each connection. It uses the network's listener, which bounds connections, time and header
// sections on every runtime. node:http would add 4 MiB of memory, and bypass a given network.
import { encodeHead, type Fields } from "../http/head.ts";
import { reasonOf } from "../http/status.ts";
import type { Incoming, TcpListener } from "../net/types.ts";

export interface Response {
  readonly status: number;
  readonly type: string;
  readonly body: string;
}

/** Answers requests until it is closed, which closes the listener. `respond` never rejects. */
export function startResponder(
  listener: TcpListener,
  respond: (head: string | undefined) => Promise<Response>,
): { close(): Promise<void> } {
  const serve = async ({ stream, head }: Incoming): Promise<void> => {
    const { status, type, body } = await respond(head);
    const content = new TextEncoder().encode(body);
    const fields: Fields = [
      ["Content-Type", type],
      ["Content-Length", String(content.length)],
      ["Cache-Control", "no-store"],
      ...status === 405 ? [["Allow", "GET, HEAD"] as const] : [],
      ["Connection", "close"],
    ];
    const failed = () => {}; // the client has disconnected
    stream.write(encodeHead(`HTTP/1.1 ${status} ${reasonOf(status)}`, fields)).catch(failed);
    if (!head?.startsWith("HEAD ")) stream.write(content).catch(failed);
    stream.close(); // pending writes are sent first
  };
  const run = async (): Promise<void> => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) void serve(incoming); // never rejects
    }
  };
  const running = run();
  return {
    async close() {
      listener.close();
      await running;
    },
  };
}
