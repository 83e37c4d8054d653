// The options of traces, which all services have. Their variables are those of OpenTelemetry's SDKs, where these have one.
import { NOT_GIVEN } from "../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";

/** Why these options need a restart. */
const IN_PROGRESS = "spans in progress belong to its exporter";

export const tracingOptions = defineOptions({
  "tracing.otlp-endpoint": {
    restart: IN_PROGRESS,
    kind: "string",
    env: "OTEL_EXPORTER_OTLP_ENDPOINT",
    description:
      "URL of a collector that accepts traces by OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is appended unless it ends with that. By default there are no traces.",
    check: endpointProblem,
  },
  "tracing.otlp-headers-file": {
    restart: IN_PROGRESS,
    guards: NOT_GIVEN,
    kind: "file",
    description:
      "File with fields for requests to the collector, one name: value per line, read for each request. By default there are none.",
  },
  "tracing.otlp-headers": {
    restart: IN_PROGRESS,
    kind: "list",
    secret: true,
    env: "OTEL_EXPORTER_OTLP_HEADERS",
    description:
      "Header fields for requests to the collector, name=value, with values percent-encoded; prefer otlp-headers-file for secrets.",
    check: (pairs) => pairs.every((pair) => parseHeader(pair) !== undefined) ? undefined : "not every item is name=value",
  },
  "tracing.sampling-ratio": {
    restart: IN_PROGRESS,
    kind: "string",
    default: "1",
    env: "OTEL_TRACES_SAMPLER_ARG",
    description:
      "Fraction of requests that are traced, 0 to 1. It does not apply to requests with traceparent, whose sampled flag decides. 0: only those.",
    check: (text) =>
      /^(?:0|1|0?\.[0-9]{1,9}|1\.0+)$/.test(text) ? undefined : `${JSON.stringify(text)} is not a number from 0 to 1, as 0.01`,
  },
  "tracing.service-name": {
    restart: IN_PROGRESS,
    kind: "string",
    env: "OTEL_SERVICE_NAME",
    description: "Name of the service in traces; by default reverse-http-proxy, reverse-http-lb or reverse-http-agent.",
  },
  "tracing.resource-attributes": {
    restart: IN_PROGRESS,
    kind: "list",
    env: "OTEL_RESOURCE_ATTRIBUTES",
    description: "Attributes of the service in traces, name=value, as deployment.environment.name=test; values are percent-encoded.",
    check: (pairs) => pairs.every((pair) => parsePair(pair) !== undefined) ? undefined : "not every item is name=value",
  },
});

/** As on the command line: `--tracing.otlp-endpoint` is `otlpEndpoint`. */
export type TracingOptions = ValuesOf<typeof tracingOptions>["tracing"];

/** Path of the requests that carry traces. */
const PATH = "/v1/traces";

/** The URL to which traces are posted. */
export function tracesUrl(endpoint: string): string {
  const url = new URL(endpoint);
  if (!url.pathname.endsWith(PATH)) url.pathname = url.pathname.replace(/\/$/, "") + PATH;
  return url.href;
}

function endpointProblem(text: string): string | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    return `${JSON.stringify(text)} is not a URL, as http://127.0.0.1:4318 is`;
  }
  if (url.username !== "" || url.password !== "") {
    return "it has a user or a password, which would be in logs: use tracing.otlp-headers-file";
  }
  return url.hash === "" ? undefined : `it has a fragment, ${url.hash}`;
}

/** `name=value`, percent-decoded as OpenTelemetry has it; `undefined` for other texts. */
export function parsePair(text: string): readonly [name: string, value: string] | undefined {
  const [, name, value] = /^\s*([^=\s]+)\s*=\s*(.*?)\s*$/.exec(text) ?? [];
  if (name === undefined || value === undefined) return undefined;
  try {
    return [decodeURIComponent(name), decodeURIComponent(value)];
  } catch {
    return undefined;
  }
}

const FIELD_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const FIELD_VALUE = /^[\x20-\x7e]*$/;

/** A pair that can be a field of a request. */
export function parseHeader(text: string): readonly [name: string, value: string] | undefined {
  const pair = parsePair(text);
  return pair !== undefined && isField(pair) ? pair : undefined;
}

/** The fields in a file; `undefined` if a line is not `name: value`. Empty lines and those that begin with `#` are skipped. */
export function parseHeaderLines(text: string): Record<string, string> | undefined {
  const fields: Record<string, string> = {};
  for (const line of text.split("\n").map((line) => line.trim())) {
    if (line === "" || line.startsWith("#")) continue;
    const colon = line.indexOf(":");
    const field = [line.slice(0, Math.max(colon, 0)).trim(), line.slice(colon + 1).trim()] as const;
    if (!isField(field)) return undefined;
    fields[field[0]] = field[1];
  }
  return fields;
}

function isField([name, value]: readonly [name: string, value: string]): boolean {
  return FIELD_NAME.test(name) && FIELD_VALUE.test(value);
}
