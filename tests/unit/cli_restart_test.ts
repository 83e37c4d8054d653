// The command line and environment of a process that restarts itself.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { resolve } from "../../shared/config/sources.ts";
import { defineOptions } from "../../shared/config/option.ts";
import { saferStart } from "../../shared/cli/restart.ts";

const options = defineOptions({
  "auth.jwt.token": { kind: "string", secret: true, description: "Secret." },
  "tls.key-password": { kind: "string", secret: true, description: "Secret." },
  "log.level": { kind: "string", default: "info", description: "None." },
});

/** The parsed command line. */
function startOf(args: string[], env: Record<string, string> = {}) {
  const flags = new Map<string, string>();
  args.forEach((arg, i) => {
    const [, name, value] = /^--([^=]+)(?:=(.*))?$/.exec(arg) ?? [];
    if (name !== undefined && name in options) flags.set(name, value ?? args[i + 1]!);
  });
  return saferStart(options, resolve(options, { flags, env }), { args, env });
}

describe("a safer start", () => {
  it("is not needed without secrets, or if they are in files or the environment", () => {
    for (const args of [[], ["--log.level=warn"], ["--auth.jwt.token=file:token"], ["--auth.jwt.token", "file:token"]]) {
      assert.equal(startOf(args, { REVERSE_HTTP_TLS_KEY_PASSWORD: "secret" }), undefined, args.join(" "));
    }
  });

  const cases: [name: string, args: string[], kept: string[]][] = [
    ["after a sign", ["agent", "--auth.jwt.token=a=b", "--log.level=warn"], ["agent", "--log.level=warn"]],
    ["as an argument of its own", ["agent", "--auth.jwt.token", "a=b", "--log.level", "warn"], ["agent", "--log.level", "warn"]],
    ["given twice", ["--auth.jwt.token=x", "--auth.jwt.token", "a=b"], []],
    ["given in a file first", ["--auth.jwt.token=file:x", "--auth.jwt.token=a=b"], []],
  ];
  for (const [name, args, kept] of cases) {
    it(`has a secret in the environment that was on the command line ${name}`, () => {
      const start = startOf(args, { HOME: "/home", REVERSE_HTTP_AUTH_JWT_TOKEN: "another" });
      assert.deepEqual(start, { args: kept, env: { HOME: "/home", REVERSE_HTTP_AUTH_JWT_TOKEN: "a=b" } });
    });
  }

  it("has all secrets, and keeps the other values", () => {
    const args = ["--tls.key-password=p", "--auth.jwt.token=t", "--log.level=warn"];
    const safer = startOf(args)!;
    assert.deepEqual(safer.env, { REVERSE_HTTP_TLS_KEY_PASSWORD: "p", REVERSE_HTTP_AUTH_JWT_TOKEN: "t" });
    assert.equal(startOf([...safer.args], safer.env as Record<string, string>), undefined);
  });

  it("has no variables that load code into the runtime or open a debugger", () => {
    for (const variable of ["BUN_OPTIONS", "BUN_INSPECT", "BUN_INSPECT_CONNECT_TO", "BUN_INSPECT_PRELOAD"]) {
      assert.deepEqual(startOf(["--log.level=warn"], { [variable]: "", PATH: "/bin" }), {
        args: ["--log.level=warn"],
        env: { PATH: "/bin" },
      });
    }
  });
});
