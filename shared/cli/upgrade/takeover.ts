// Asks a running service to let a new process take over, at its --handover.socket.
import { Buffer } from "node:buffer";
import { connect, type Socket } from "node:net";
import { messageOf } from "../../log/error_message.ts";
import { printable } from "../../net/printable.ts";
import { type Message, PROTOCOL, REPLACE_TIMEOUT_MS } from "../../service/handover.ts";

/** The process that has taken over. */
export interface Successor {
  readonly pid?: number;
  readonly version: string;
}

const MAX_ANSWER = 64 * 1024;
const MAX_REASON = 500;

/**
 * Lets the service at `path` start a new process, and waits until that one serves.
 * @throws {Error} saying why it does not; then the service goes on as it is
 */
export async function requestSuccessor(path: string): Promise<Successor> {
  let answer: Message;
  try {
    answer = JSON.parse(await ask(path, JSON.stringify({ step: "replace", protocol: PROTOCOL } satisfies Message)));
  } catch (cause) {
    throw new Error(`no answer at ${path}: ${messageOf(cause)}`, { cause });
  }
  const { step, pid, version = "", reason = "it gives no reason" } = answer;
  if (step !== "replaced") throw new Error(printable(reason, MAX_REASON));
  return { pid, version: printable(version, MAX_REASON) };
}

/** Sends a message, which follows its length, and receives one. */
async function ask(path: string, text: string): Promise<string> {
  const socket = connect({ path, signal: AbortSignal.timeout(REPLACE_TIMEOUT_MS) });
  try {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(Buffer.byteLength(text));
    socket.write(Buffer.concat([length, Buffer.from(text)]));
    return await receive(socket);
  } finally {
    socket.destroy();
  }
}

async function receive(socket: Socket): Promise<string> {
  let received = Buffer.alloc(0);
  for await (const part of socket as AsyncIterable<Buffer>) {
    received = Buffer.concat([received, part]);
    if (received.length < 4) continue;
    const end = 4 + received.readUInt32LE();
    if (end > MAX_ANSWER) throw new Error("the answer is too long");
    if (received.length >= end) return received.toString("utf8", 4, end);
  }
  throw new Error("it is of a version that cannot be asked, or has ended");
}
