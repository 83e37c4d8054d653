// The conformance suite: every property of the network contract is a test with a name. An adapter that passes all of them can carry the
// program. It knows the contract, not the adapters.
import { describe } from "node:test";
import { duplexTests } from "./duplex.ts";
import { headTests } from "./heads.ts";
import { lifetimeTests } from "./lifetime.ts";
import { preambleTests } from "./preambles.ts";
import { exchangeTests } from "./exchange.ts";
import { spliceTests } from "./splice.ts";
import { sessionTests } from "./sessions.ts";
import { type Adapter, makeSuite } from "./support.ts";
import { tcpTests } from "./tcp.ts";
import { tlsTests } from "./tls.ts";

export function conformance(adapter: Adapter): void {
  describe(`the ${adapter.name} network`, () => {
    const suite = makeSuite(adapter);
    for (
      const tests of [duplexTests, headTests, preambleTests, tcpTests, tlsTests, sessionTests, exchangeTests, spliceTests, lifetimeTests]
    ) tests(suite);
  });
}
