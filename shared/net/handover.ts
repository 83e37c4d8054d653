// Passing listening sockets to another process.

/**
 * Passes the sockets of listeners between two processes, as descriptors over a Unix socket. Of QUIC, connections go with them: those of this
 * process go on when a successor reads the socket, which relays their packets.
 */
export interface SocketHandover {
  /**
   * Listens for channels at `path`, where nothing may be.
   * @throws {NetError} `address-in-use`, `permission-denied`
   */
  listen(path: string): Promise<ChannelListener>;
  /**
   * Connects to a process that listens at `path`.
   * @throws {NetError} `refused` if none does; `permission-denied`, also if it is another user's
   */
  connect(path: string): Promise<Channel>;
  /**
   * Sends copies of the sockets of all listeners, which continue to work.
   * @throws {NetError} `reset`, `closed`
   */
  send(channel: Channel): Promise<void>;
  /**
   * Receives what the other process sends. A listener that is opened later for an address, as the other process has written it, uses its
   * socket. No listener accepts until {@link setAccepting}. Returns the number of sockets.
   * @throws {NetError} `reset`, `closed`
   */
  receive(channel: Channel): Promise<number>;
  /** Lets listeners accept, or no longer: then their peers wait, or a successor accepts them. Nothing that is open is affected. */
  setAccepting(accepting: boolean): void;
  /** Closes listening sockets that a successor has taken over. Listeners must not accept; open connections are delivered and stay open. */
  release(): void;
  /** Closes received sockets that no listener uses. */
  dropUnused(): void;
}

/** Accepts channels of processes of the same user. */
export interface ChannelListener {
  /** Resolves with the next channel; with `null` once it is closed. */
  accept(): Promise<Channel | null>;
  /** Stops listening. Accepted channels stay open. */
  close(): void;
}

/** A connection with another process on this machine. */
export interface Channel {
  /** Id of the other process; `undefined` if the system does not tell. */
  readonly pid?: number;
  /**
   * Sends a message of up to 64 KiB.
   * @throws {NetError} `reset`, `closed`
   */
  send(message: string): Promise<void>;
  /**
   * Resolves with the next message; with `null` once the other process has closed the channel, or has ended.
   * @throws {NetError} `reset`, `closed`
   */
  receive(): Promise<string | null>;
  /** Closes the channel. The other process receives what was sent before. */
  close(): void;
}
