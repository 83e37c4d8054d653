// Log lines: their content, and that no value can imitate another line or field.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { createLogger, LOG_LEVELS, type LogFields, type LogFormat, type LogLevel, silentLogger } from "../../shared/log/logger.ts";

/** A logger's output for one message. */
function write(format: LogFormat, fields?: LogFields, { color = false, level = "info" as LogLevel, message = "connected" } = {}): string[] {
  const lines: string[] = [];
  createLogger({ format, level: "trace", write: (line) => lines.push(line), color })[level](message, fields);
  return lines;
}

const TIME = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})/;

/** Values that a peer might send. */
const HOSTILE = [
  "two\nlines",
  "two\r\nlines",
  "a level=ERROR",
  'a" level="ERROR',
  "a=b",
  "\u001b[31mred",
  "\u009b31mred",
  "\u0000",
  "\u007f",
  "a\u2028b\u2029c",
  "\ud800",
  "back\\slash",
  "",
  " ",
];

describe("text log", () => {
  it("has a line with time, level, message and fields", () => {
    const [line] = write("text", { agent: "4711", port: 80, ok: true });
    assert.match(line!, TIME);
    assert.match(line!, / INFO {2}connected agent=4711 port=80 ok=true\n$/);
  });

  it("names each level", () => {
    const names = LOG_LEVELS.map((level) => / (TRACE|DEBUG|INFO|WARN|ERROR) +connected\n$/.exec(write("text", {}, { level })[0]!)?.[1]);
    assert.deepEqual(names, ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"]);
  });

  it("omits undefined fields, and keeps false, zero and empty ones", () => {
    assert.match(write("text", { a: undefined, b: false, c: 0, d: "" })[0]!, / connected b=false c=0 d=""\n$/);
  });

  it("quotes values that are not a single word", () => {
    assert.match(write("text", { reason: "bad agent id" })[0]!, / reason="bad agent id"\n$/);
  });

  it("keeps every value within its quotes, on one line, without control characters", () => {
    for (const value of HOSTILE) {
      const [line, ...more] = write("text", { value, last: 1 });
      assert.equal(more.length, 0);
      // deno-lint-ignore no-control-regex
      assert.match(line!, /^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\n$/, JSON.stringify(value));
      const quoted = / value=("(?:[^"\\]|\\.)*"|\S+) last=1\n$/.exec(line!)?.[1];
      assert.equal(quoted?.startsWith('"') ? JSON.parse(quoted) : quoted, value);
    }
  });

  it("can be parsed, whatever the values are", () => {
    fc.assert(fc.property(fc.string({ unit: "binary" }), (value) => {
      const quoted = / value=("(?:[^"\\]|\\.)*"|[^\s"=]+) last=1\n$/.exec(write("text", { value, last: 1 })[0]!)?.[1];
      assert.equal(quoted?.startsWith('"') ? JSON.parse(quoted) : quoted, value);
    }));
  });

  it("has colours if requested, with the same text", () => {
    const [plain] = write("text", { a: 1 });
    const [colored] = write("text", { a: 1 }, { color: true });
    assert.ok(colored!.includes("\u001b["));
    assert.ok(!plain!.includes("\u001b["));
    const withoutTime = (line: string) => stripVTControlCharacters(line).replace(TIME, "").replace(/\s+/g, " ");
    assert.equal(withoutTime(colored!), withoutTime(plain!));
  });
});

describe("JSON log", () => {
  it("has one object per line, with time, level, message and fields at the top level", () => {
    const [line] = write("json", { agent: "4711", port: 80, ok: true, gone: undefined }, { level: "warn" });
    assert.match(line!, /^[^\n]+\n$/);
    const { "@timestamp": time, ...rest } = JSON.parse(line!) as Record<string, unknown>;
    assert.match(String(time), TIME);
    assert.deepEqual(rest, { level: "WARN", message: "connected", logger: "", agent: "4711", port: 80, ok: true });
  });

  it("keeps every value on one line, unchanged", () => {
    for (const value of HOSTILE) {
      const [line] = write("json", { value });
      assert.match(line!, /^[^\n\r]+\n$/);
      assert.equal((JSON.parse(line!) as { value: string }).value, value);
    }
  });

  it("has no colours", () => assert.ok(!write("json", {}, { color: true })[0]!.includes("\u001b[")));
});

describe("logger", () => {
  it("drops messages below its level", () => {
    for (const [i, level] of LOG_LEVELS.entries()) {
      const lines: string[] = [];
      const log = createLogger({ format: "text", level, write: (line) => lines.push(line) });
      for (const each of LOG_LEVELS) log[each]("x");
      assert.equal(lines.length, LOG_LEVELS.length - i, level);
    }
  });

  it("is independent of other loggers", () => {
    const [first, second]: string[][] = [[], []];
    const log = createLogger({ format: "json", level: "info", write: (line) => first!.push(line) });
    createLogger({ format: "text", level: "trace", write: (line) => second!.push(line) }).info("b");
    log.debug("a");
    log.info("a");
    assert.equal(first!.length, 1);
    assert.match(first![0]!, /^\{/);
    assert.equal(second!.length, 1);
  });

  it("that is silent accepts everything", () => {
    for (const level of LOG_LEVELS) silentLogger[level]("x", { a: 1 });
  });
});
