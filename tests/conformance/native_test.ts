// The native engine, held to the whole contract.
import process from "node:process";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import { conformance } from "./suite.ts";

// a bundle, as Node needs it, does not lie where the sources do
const addon = process.env.REVERSE_HTTP_TEST_ADDON;

conformance({
  name: "native",
  create: () => createNativeNet({ addon }),
  sessions: ["quic", "tls", "websocket"],
  has: { sockets: true, tls: true },
});
