// The conformance suite: every property of the network contract is a test with a name. An adapter that passes all of them can carry the
// program. It knows the contract, not the adapters.
import { describe } from "node:test";
import { duplexTests } from "./duplex.ts";
import { headTests } from "./heads.ts";
import { quicTests } from "./quic.ts";
import { type Adapter, makeSuite } from "./support.ts";
import { tcpTests } from "./tcp.ts";

export function conformance(adapter: Adapter): void {
  describe(`the ${adapter.name} network`, () => {
    const suite = makeSuite(adapter);
    for (const tests of [duplexTests, headTests, tcpTests, quicTests]) tests(suite);
  });
}
