// The options of the executables: all those of the Go original with its names and defaults, and the generated tables.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { agentOptions } from "../../agent/options.ts";
import { OPERATORS } from "../../admin/options.ts";
import { CLIENTS } from "../../client/options.ts";
import { lbOptions } from "../../lb/options.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { resolve } from "../../shared/config/sources.ts";
import { envOf, type Options, parseValue } from "../../shared/config/option.ts";
import { optionTable } from "../../tools/option_table.ts";
import { optionTypes } from "../../tools/option_types.ts";

const ROOT = join(import.meta.dirname!, "..", "..");

/** Names and defaults that users of the Go original rely on. */
const ORIGINAL: Record<string, { options: Options; defaults: Record<string, string | undefined> }> = {
  proxy: {
    options: proxyOptions,
    defaults: {
      "agent-server.listen-address": ":4242",
      "agent-server.tls.file.key": undefined,
      "agent-server.tls.file.cert": undefined,
      "agent-server.tls.file.client-ca": undefined,
      "agent-server.tls.file.client-crl": undefined,
      "agent-server.tls.refresh": "0s",
      "agent-server.agent.dial-timeout": "10s",
      "http-proxy.listen-address": ":3128",
      "http-proxy.tls.enable": "false",
      "http-proxy.tls.refresh": "0s",
      "http-proxy.tls.file.key": undefined,
      "http-proxy.tls.file.cert": undefined,
      "http-proxy.tls.file.client-ca": undefined,
      "http-proxy.tls.file.client-crl": undefined,
      "http-proxy.tls.key-password": undefined,
      "http-proxy.host-whitelist": undefined,
      "auth.type": "noauth",
      "auth.jwt.public-key": "auth-key-public.pem",
      "auth.jwt.audience": undefined,
      "store.type": "none",
      "store.http-proxy-address": undefined,
      "store.memcached.address": "localhost:11211",
      "store.memcached.timeout": "1s",
      "log.format": "text",
      "log.level": "info",
    },
  },
  agent: {
    options: agentOptions,
    defaults: {
      "agent-client.server-address": "localhost:4242",
      "agent-client.host-whitelist": undefined,
      "agent-client.tls.insecure-skip-verify": "false",
      "agent-client.tls.refresh": "0s",
      "agent-client.tls.file.root-ca": undefined,
      "agent-client.tls.file.key": undefined,
      "agent-client.tls.file.cert": undefined,
      "auth.type": "noauth",
      "auth.noauth.agent-id": undefined,
      "auth.jwt.token": undefined,
      "log.format": "text",
      "log.level": "info",
    },
  },
  lb: {
    options: lbOptions,
    defaults: {
      "http-proxy.listen-address": ":3129",
      "http-proxy.tls.enable": "false",
      "http-proxy.tls.refresh": "0s",
      "http-proxy.tls.file.key": undefined,
      "http-proxy.tls.file.cert": undefined,
      "http-proxy.tls.file.client-ca": undefined,
      "http-proxy.tls.file.client-crl": undefined,
      "http-proxy.tls.key-password": undefined,
      "http-proxy.host-whitelist": undefined,
      "http-connector.tls.enable": "false",
      "http-connector.tls.insecure-skip-verify": "false",
      "http-connector.tls.use-system-pool": "false",
      "http-connector.tls.refresh": "0s",
      "http-connector.tls.file.root-ca": undefined,
      "http-connector.tls.file.key": undefined,
      "http-connector.tls.file.cert": undefined,
      "auth.type": "noauth",
      "auth.jwt.public-key": "auth-key-public.pem",
      "auth.jwt.audience": undefined,
      "store.type": "memcached",
      "store.memcached.address": "localhost:11211",
      "store.memcached.timeout": "1s",
      "log.format": "text",
      "log.level": "info",
    },
  },
};

describe("options of clients", () => {
  it("are in docs/options.md as they are defined", () => {
    const text = readFileSync(join(ROOT, "docs", "options.md"), "utf8");
    for (const [heading, options] of Object.entries({ ...CLIENTS, ...OPERATORS })) {
      assert.ok(text.includes(`## reverse-http ${heading}\n\n${optionTable(options)}`), heading);
    }
  });
});

for (const [name, { options, defaults }] of Object.entries(ORIGINAL)) {
  describe(`options of the ${name}`, () => {
    it("have the names and defaults of the Go original", () => {
      for (const [option, value] of Object.entries(defaults)) {
        assert.ok(option in options, `--${option} is missing`);
        assert.equal(options[option]!.default, value, option);
      }
    });

    it("have defaults that pass their own checks", () => {
      resolve(options, { flags: new Map(), env: {} });
    });

    it("have one variable each", () => {
      const variables = Object.entries(options).map(([option, definition]) => envOf(option, definition));
      assert.equal(new Set(variables).size, variables.length);
      assert.ok(variables.includes("LOG_FORMAT") && variables.includes("LOG_LEVEL"));
    });

    it("have a description", () => {
      for (const [option, { description }] of Object.entries(options)) assert.match(description, /^[A-Z].*\.$/, option);
    });

    it("are in docs/options.md as they are defined", () => {
      const document = readFileSync(join(ROOT, "docs", "options.md"), "utf8");
      assert.ok(document.includes(optionTable(options)), "The tables of docs/options.md are stale: run deno task docs");
    });

    it("mark secrets", () => {
      for (const [option, { secret }] of Object.entries(options)) {
        assert.equal(
          secret === true,
          /(password|token|redis\.url|agent-client\.proxy|join|hmac-key|otlp-headers|client-secret)$/.test(option),
          option,
        );
      }
    });
  });
}

describe("allow-list options", () => {
  it("name the invalid pattern", () => {
    for (const definition of [proxyOptions["http-proxy.host-whitelist"], agentOptions["agent-client.host-whitelist"]]) {
      assert.throws(() => parseValue(definition, "localhost,a:b:c"), /"a:b:c"/);
      assert.throws(() => parseValue(definition, "localhost,,b"), /""/);
      assert.deepEqual(parseValue(definition, "localhost, *.zone:80, 10.0.0.1/8:1000-2000"), [
        "localhost",
        "*.zone:80",
        "10.0.0.1/8:1000-2000",
      ]);
    }
  });
});

describe("agent's server address", () => {
  it("needs a host and a port to connect to", () => {
    const definition = agentOptions["agent-client.server-address"];
    for (const text of [":4242", "localhost:0"]) assert.throws(() => parseValue(definition, text), /has no host or no port/);
    assert.deepEqual(parseValue(definition, "[::1]:4242,b:1"), ["[::1]:4242", "b:1"]);
  });
});

describe("options of the library", () => {
  it("are in options.ts as they are defined", () => {
    assert.equal(readFileSync(join(ROOT, "options.ts"), "utf8"), optionTypes(), "options.ts is stale: run deno task docs");
  });
});
