// A tunnel as a stream of node:stream, for programs that embed the library.
import { Buffer } from "node:buffer";
import { Duplex as NodeDuplex } from "node:stream";
import type { Duplex } from "../shared/net/stream.ts";

/**
 * Returns `tunnel` as a stream, which owns it. Each direction ends separately: `end()` finishes the writing one. A reset by the peer is an
 * error. Destroyed before `end()` has finished, or with an error, it resets the tunnel: the peer must not take a part for the whole.
 */
export function toNodeStream(tunnel: Duplex): NodeDuplex {
  const stream = new NodeDuplex({
    allowHalfOpen: true,
    read() {
      // after an error or `destroy` both do nothing
      tunnel.read().then(
        (data) => stream.push(data && Buffer.from(data.buffer, data.byteOffset, data.length)),
        (error) => stream.destroy(error),
      );
    },
    write(data: Uint8Array, _, done) {
      tunnel.write(data).then(() => done(), done);
    },
    final(done) {
      tunnel.closeWrite();
      done();
    },
    destroy(error, done) {
      if (error || !stream.writableFinished) tunnel.reset(1);
      tunnel.close();
      done(error);
    },
  });
  return stream;
}
