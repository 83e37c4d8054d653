// The conformance suite: one test for each property of the network contract. An implementation that passes all of them can run the program.
// Independent of the implementations.
import { describe } from "node:test";
import { datagramTests } from "./datagrams.ts";
import { duplexTests } from "./duplex.ts";
import { handoverTests } from "./handovers.ts";
import { headTests } from "./heads.ts";
import { http2Tests } from "./http2.ts";
import { http2ClientTests } from "./http2_client.ts";
import { http2OverTests } from "./http2_over.ts";
import { lifetimeTests } from "./lifetime.ts";
import { linkTests } from "./links.ts";
import { preambleTests } from "./preambles.ts";
import { requestTests } from "./requests.ts";
import { spliceTests } from "./splice.ts";
import { sessionTests } from "./sessions.ts";
import { type Adapter, makeSuite } from "./support.ts";
import { tcpTests } from "./tcp.ts";
import { tlsTests } from "./tls.ts";

export function conformance(adapter: Adapter): void {
  describe(`the ${adapter.name} network`, () => {
    const suite = makeSuite(adapter);
    for (
      const tests of [
        duplexTests,
        handoverTests,
        headTests,
        http2Tests,
        http2ClientTests,
        http2OverTests,
        preambleTests,
        tcpTests,
        tlsTests,
        sessionTests,
        linkTests,
        requestTests,
        spliceTests,
        datagramTests,
        lifetimeTests,
      ]
    ) tests(suite);
  });
}
