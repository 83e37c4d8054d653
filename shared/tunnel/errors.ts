// Which HTTP response the errors of a tunnel become, at a frontend and at an agent.
import { HeadError } from "../http/head.ts";
import { ProxyError } from "../http/status.ts";
import { LimitReached, TunnelIdle } from "../limits/limit.ts";

/** The response for `error`; `undefined` for an error that only the caller can interpret. */
export function proxyErrorOf(error: unknown): ProxyError | undefined {
  if (error instanceof ProxyError) return error;
  if (error instanceof HeadError) return new ProxyError(error.status, "http_request_error", error.message);
  if (error instanceof LimitReached) {
    return new ProxyError(503, "connection_limit_reached", error.message, [["Retry-After", String(error.retryAfterS)]]);
  }
  if (error instanceof TunnelIdle) return new ProxyError(504, "http_response_timeout", error.message);
  return undefined;
}
