// Kinds of options: which values each accepts and refuses, and the errors.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  camelCase,
  checkValue,
  defineOptions,
  envOf,
  type Option,
  parseValue,
  ValueError,
  type ValuesOf,
} from "../../shared/config/option.ts";

const duration: Option = { kind: "duration", description: "" };
const address: Option = { kind: "address", description: "" };
const boolean: Option = { kind: "boolean", description: "" };
const integer: Option = { kind: "integer", description: "" };
const list: Option = { kind: "list", description: "" };

/** The error message. */
function refusal(option: Option, text: string): string {
  try {
    parseValue(option, text);
  } catch (error) {
    assert.ok(error instanceof ValueError, String(error));
    return error.message;
  }
  throw new Error(`${JSON.stringify(text)} was taken`);
}

describe("integer", () => {
  it("accepts whole numbers from zero", () => {
    assert.equal(parseValue(integer, "0"), 0);
    assert.equal(parseValue(integer, "64"), 64);
  });

  it("refuses everything else", () => {
    for (const text of ["", "-1", "+1", "1.5", "1e3", " 1", "0x1", "ten", "1234567890"]) {
      assert.match(refusal(integer, text), /is not a whole number from 0 to 999999999$/, text);
    }
  });
});

describe("duration", () => {
  const taken = {
    "0": 0,
    "0s": 0,
    "300ms": 300,
    "10s": 10_000,
    "1m30s": 90_000,
    "24h": 86_400_000,
    "7d": 604_800_000,
    "1d12h": 129_600_000,
    "1.5s": 1_500,
    "1h2m3s4ms": 3_723_004,
    "1500us": 2,
    "2000000ns": 2,
    "576h": 2_073_600_000,
    "1h30m": 5_400_000,
    "1.5h": 5_400_000,
    ".5s": 500,
    "1.s": 1_000,
    "+1s": 1_000,
    "1500µs": 2,
    "1500μs": 2,
    "30m1h": 5_400_000,
    "1s1s": 2_000,
    "0.1s": 100,
  };
  for (const [text, ms] of Object.entries(taken)) {
    it(`reads ${text} as ${ms} ms`, () => assert.equal(parseValue(duration, text), ms));
  }

  it("above zero is never rounded to zero", () => {
    for (const text of ["1ns", "100us", "0.4ms"]) assert.equal(parseValue(duration, text), 1, text);
    assert.equal(parseValue(duration, "0ns"), 0);
  });

  it("refuses a negative one", () => {
    for (const text of ["-1s", "-1h30m"]) assert.equal(refusal(duration, text), `${JSON.stringify(text)} is negative`);
  });

  it("refuses a number without a unit, and says what to write", () => {
    assert.equal(refusal(duration, "10"), '"10" has no unit: write for example 10s or 10ms');
    assert.match(refusal(duration, "1.5"), /has no unit/);
  });

  it("refuses formats that Go does not write", () => {
    for (
      const text of [
        "",
        " ",
        "s",
        "--1s",
        ".s",
        "1.2.3s",
        "1S",
        "1 s",
        "10s ",
        "10 seconds",
        "1w",
        "1e3s",
        "1,5s",
        "1s2",
        "PT10S",
        "Infinity",
        "0x1s",
      ]
    ) {
      assert.match(refusal(duration, text), /is not a duration like 300ms, 10s, 1m30s, 24h or 7d$/, text);
    }
  });

  it("refuses a duration longer than timers support", () => {
    assert.equal(refusal(duration, "577h"), '"577h" is longer than 576h');
    assert.match(refusal(duration, `${"9".repeat(400)}h`), /is longer than 576h$/);
  });
});

describe("address", () => {
  it("accepts a host, an address in brackets or nothing before the port", () => {
    for (const text of [":0", ":4242", "localhost:4242", "127.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:1"]) {
      assert.equal(parseValue(address, text), text);
    }
  });

  it("refuses one without a port, with a bad one, or with IPv6 without brackets", () => {
    for (
      const text of ["", "localhost", "4242", "localhost:", "localhost:http", "localhost:-1", "::1:80", "[::1]", "[]:80", "a b:80", "a:1:2"]
    ) {
      assert.match(
        refusal(address, text),
        /is not host:port, \[host\]:port or :port(;|$)|in its brackets$|has an invalid host/,
        text,
      );
    }
    assert.match(refusal(address, "3128"), /; write :3128$/);
    assert.match(refusal(address, "https://a.example:3128/x"), /; write a\.example:3128 alone$/);
    assert.match(refusal(address, "::1:80"), /; write an IPv6 address in brackets before its port$/);
    assert.match(refusal(address, "localhost"), /; its port is missing$/);
    assert.equal(refusal(address, ":65536"), '":65536" has a port above 65535');
  });
});

describe("boolean", () => {
  it("accepts exactly the values that Go accepts", () => {
    for (const text of ["true", "1", "t", "T", "TRUE", "True"]) assert.equal(parseValue(boolean, text), true, text);
    for (const text of ["false", "0", "f", "F", "FALSE", "False"]) assert.equal(parseValue(boolean, text), false, text);
    for (const text of ["", "yes", "on", "2", "tRUE", " true"]) assert.match(refusal(boolean, text), /is not true or false$/, text);
  });
});

describe("list", () => {
  it("splits at commas and trims", () => {
    assert.deepEqual(parseValue(list, "a, b:80,*.c"), ["a", "b:80", "*.c"]);
    assert.deepEqual(parseValue(list, ""), []);
  });

  it("keeps an empty item, for the option's own check to refuse", () => {
    assert.deepEqual(parseValue(list, "a,,b"), ["a", "", "b"]);
  });
});

describe("option", () => {
  it("refuses a value that is not one of its choices, and lists them", () => {
    assert.equal(refusal({ kind: "string", choices: ["text", "json"], description: "" }, "xml"), '"xml" is not one of text, json');
  });

  it("refuses what its check refuses, with the check's message", () => {
    const option: Option = { kind: "duration", description: "", check: (ms) => ms > 0 ? undefined : "it must be more than zero" };
    assert.equal(refusal(option, "0s"), "it must be more than zero");
    assert.equal(parseValue(option, "1ms"), 1);
  });

  it("refuses a value of another type from a program", () => {
    const values: [Option, unknown][] = [[duration, "10s"], [duration, undefined], [boolean, "true"], [list, "a"], [list, ["a", 1]], [
      address,
      4242,
    ]];
    for (const [option, value] of values) assert.throws(() => checkValue(option, value), ValueError, JSON.stringify(value));
  });

  it("is named by its flag, its variable and its path", () => {
    assert.equal(envOf("agent-server.listen-address", address), "REVERSE_HTTP_AGENT_SERVER_LISTEN_ADDRESS");
    assert.equal(envOf("log.level", { kind: "string", env: "LOG_LEVEL", description: "" }), "LOG_LEVEL");
    assert.equal(camelCase("insecure-skip-verify"), "insecureSkipVerify");
  });
});

describe("values of options", () => {
  it("have the types that the definitions imply", () => {
    const options = defineOptions({
      "agent-server.listen-address": { kind: "address", default: ":1", description: "" },
      "agent-server.tls.file.root-ca": { kind: "file", description: "" },
      "agent-server.wait": { kind: "duration", default: "1s", description: "" },
      "log.level": { kind: "string", default: "info", choices: ["info", "warn"], description: "" },
      "names": { kind: "list", description: "" },
      "on": { kind: "boolean", description: "" },
    });
    // both ways: neither wider nor narrower; `deno check` is what fails
    type Expected = {
      agentServer: { listenAddress: string; tls: { file: { rootCa: string | undefined } }; wait: number };
      log: { level: "info" | "warn" };
      names: string[];
      on: boolean;
    };
    type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
    const same: Same<ValuesOf<typeof options>, Expected> = true;
    assert.ok(same);
  });
});

describe("file", () => {
  const file: Option = { kind: "file", description: "" };

  it("accepts a name, and refuses the content of a PEM file without showing it", () => {
    for (const name of ["key.pem", "-", "~/x", "BEGIN"]) assert.equal(parseValue(file, name), name);
    const pem = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n";
    for (const content of [pem, `\n ${pem}`, pem.replaceAll("\n", " "), Buffer.from(pem).toString("base64")]) {
      assert.match(refusal(file, content), /^its value is the content of a PEM file; write the content to a file/);
      assert.throws(() => checkValue(file, content), /^ValueError: its value is the content/);
    }
  });
});
