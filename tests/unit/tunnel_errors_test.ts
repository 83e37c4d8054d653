// The errors of tunnels: types, messages, and what becomes of other errors.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HeadError } from "../../shared/http/head.ts";
import { LimitReached, TunnelIdle } from "../../shared/limits/limit.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import {
  connectError,
  describeTunnelError,
  MalformedRequestError,
  toErrorType,
  toTunnelError,
  TunnelError,
  type TunnelErrorType,
} from "../../shared/tunnel/errors.ts";

describe("an error of a tunnel", () => {
  const rows: [code: NetErrorCode, type: TunnelErrorType, message: string, retryAfterMs?: number][] = [
    ["refused", "connection_refused", "db:1 refused the connection"],
    ["unreachable", "destination_ip_unroutable", "db:1 cannot be reached"],
    ["unknown-host", "dns_error", "db:1 has a name that the agent cannot resolve"],
    ["name-timed-out", "dns_timeout", "db:1 has a name that no name server answers for"],
    ["timed-out", "connection_timeout", "db:1 did not respond in time"],
    ["tls", "tls_protocol_error", "db:1 failed the TLS handshake with the agent"],
    ["abandoned", "connection_terminated", "db:1 was not connected yet when the client disconnected"],
    ["cancelled", "connection_timeout", "db:1 did not respond within the tunnel's maximum duration"],
    ["limit", "connection_limit_reached", "db:1 cannot be reached: the agent has no file descriptors or memory left", 1_000],
    ["address-not-available", "connection_limit_reached", "db:1 cannot be reached: the agent has no local port left", 1_000],
  ];
  for (const [code, type, message, retryAfterMs] of rows) {
    it(`is ${type} for a connection that fails with ${code}`, () => {
      const cause = new NetError(code, "the system's words");
      const error = connectError(cause, "db:1", "the agent");
      assert.deepEqual([error?.type, error?.message, error?.retryAfterMs, error?.cause], [type, message, retryAfterMs, cause]);
    });
  }

  it("does not come from a failure after the connection was open", () => {
    for (const code of ["reset", "closed", "stopped", "head-truncated", "internal"] as const) {
      assert.equal(connectError(new NetError(code, "no"), "db:1", "lb"), undefined, code);
    }
  });

  it("is what was thrown for clients, and an internal error for anything else", () => {
    for (const error of [new LimitReached("tunnels", "No"), new TunnelIdle("No"), new HeadError(431, "No")]) {
      assert.equal(toTunnelError(error), error);
    }
    assert.equal(new HeadError(400, "No") instanceof MalformedRequestError, true);
    const types = [new NetError("reset", "no"), new TypeError("no"), undefined].map((error) => toTunnelError(error).type);
    assert.deepEqual(types, ["connection_terminated", "proxy_internal_error", "proxy_internal_error"]);
  });

  it("is logged with the cause that the client does not learn", () => {
    assert.equal(describeTunnelError(new TunnelError("dns_error", "No", { cause: new Error("because") })), "No: because");
    assert.equal(describeTunnelError(new TunnelError("dns_error", "No")), "No");
  });

  it("has a type that RFC 9209 registers", () => {
    assert.equal(toErrorType("dns_timeout"), "dns_timeout");
    for (const text of ["", "DNS_TIMEOUT", "toString"]) assert.equal(toErrorType(text), undefined, text);
  });
});
