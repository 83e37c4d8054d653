// The network in memory, held to the contract. What needs sockets or certificates does not apply to it.
import { createMemoryNet } from "../../testing/net/memory.ts";
import { conformance } from "./suite.ts";

conformance({ name: "memory", create: createMemoryNet, sessions: ["quic", "tls", "websocket"], has: { sockets: false, tls: false } });
