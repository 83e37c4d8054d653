// Hand-over of listening sockets to another process.
import { NetError } from "../errors.ts";
import type { Channel, ChannelListener, SocketHandover } from "../handover.ts";
import type { Calls } from "./calls.ts";

/** A channel, and the id of the other process. */
type OpenedChannel = [channel: number, pid: number | undefined];

export class NativeHandover implements SocketHandover {
  readonly #calls: Calls;

  constructor(calls: Calls) {
    this.#calls = calls;
  }

  async listen(path: string): Promise<ChannelListener> {
    const id = await this.#calls.call<number>((op, engine) => engine.listenChannel(op, path));
    return {
      accept: async () => {
        const opened = await this.#calls.call<OpenedChannel | null>((op, engine) => engine.acceptChannel(op, id));
        return opened && new NativeChannel(this.#calls, opened);
      },
      close: () => this.#calls.engine.closeChannelListener(id),
    };
  }

  async connect(path: string): Promise<Channel> {
    return new NativeChannel(this.#calls, await this.#calls.call<OpenedChannel>((op, engine) => engine.connectChannel(op, path)));
  }

  async send(channel: Channel): Promise<void> {
    const id = idOf(channel);
    await this.#calls.call((op, engine) => engine.sendSockets(op, id));
  }

  async receive(channel: Channel): Promise<number> {
    const id = idOf(channel);
    return await this.#calls.call<number>((op, engine) => engine.receiveSockets(op, id));
  }

  setAccepting(accepting: boolean): void {
    this.#calls.engine.setAccepting(accepting);
  }

  release(): void {
    this.#calls.engine.releaseSockets();
  }

  dropUnused(): void {
    this.#calls.engine.dropUnusedSockets();
  }
}

class NativeChannel implements Channel {
  readonly pid?: number;
  readonly id: number;
  readonly #calls: Calls;

  constructor(calls: Calls, [id, pid]: OpenedChannel) {
    this.#calls = calls;
    this.id = id;
    this.pid = pid;
  }

  async send(message: string): Promise<void> {
    await this.#calls.call((op, engine) => engine.sendToChannel(op, this.id, message));
  }

  async receive(): Promise<string | null> {
    return await this.#calls.call<string | null>((op, engine) => engine.receiveFromChannel(op, this.id));
  }

  close(): void {
    this.#calls.engine.closeChannel(this.id);
  }
}

/** @throws {NetError} `invalid` */
function idOf(channel: Channel): number {
  if (!(channel instanceof NativeChannel)) throw new NetError("invalid", "Cannot use a channel of another network");
  return channel.id;
}
