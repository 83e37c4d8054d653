// The audit log: every start has an end, whatever happens to the file and the process.
import assert from "node:assert/strict";
import { appendFileSync, readFileSync, renameSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { silentLogger } from "../../shared/log/logger.ts";
import { AuditLog, type AuditOptions } from "../../shared/service/audit.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { Folder } from "../../testing/programs.ts";

const START = { client: "192.0.2.1:5000", agent: "site7", token: "t1", destination: "db:5432" };

/** A request, and its tunnel. */
const nameOf = (id: string) => ({ id, tunnel: `t-${id}` });

/** An audit log in a folder of its own. */
async function openIn(folder: Folder, options: Partial<AuditOptions> = {}) {
  const counts = { written: 0, lost: 0 };
  const lines: string[] = [];
  const note = (message: string) => void lines.push(message);
  const log = { ...silentLogger, info: note, error: note };
  const file = join(folder.path, "audit.jsonl");
  const count: AuditOptions["count"] = (outcome, records) => void (counts[outcome] += records);
  const audit = await AuditLog.open({ file, service: "proxy", log, count, ...options });
  return { audit, file, counts, lines };
}

const read = (file: string) => readFileSync(file, "utf8").trimEnd().split("\n").map((line) => JSON.parse(line));
const events = (file: string) => read(file).map(({ event, id, outcome }) => [event, id, outcome].filter((part) => part).join(" "));

describe("the audit log", () => {
  it("has a line for each start, end and refusal, for its owner alone", async () => {
    using folder = new Folder();
    const { audit, file, counts } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    audit.end({ ...nameOf("a"), outcome: "completed", sent: 1, received: 2, durationMs: 3 });
    audit.refused({ ...nameOf("b"), ...START, status: 403, error: "http_request_denied", reason: 'not on the "list"\n' });
    await audit.close();
    const [start, end, refused] = read(file);
    assert.deepEqual(start, { time: start.time, event: "start", service: "proxy", id: "a", tunnel: "t-a", ...START });
    assert.equal(new Date(start.time).toISOString(), start.time);
    assert.deepEqual([end.event, end.outcome, end.sent, end.received, end.durationMs], ["end", "completed", 1, 2, 3]);
    assert.deepEqual([refused.event, refused.error, refused.reason], ["refused", "http_request_denied", 'not on the "list"\n']);
    assert.deepEqual(counts, { written: 3, lost: 0 });
    assert.equal(statSync(file).mode & 0o777, 0o600);
  });

  it("gets the ends that a crash has left out, once, also behind a torn line", async () => {
    using folder = new Folder();
    const file = join(folder.path, "audit.jsonl");
    appendFileSync(
      file,
      '{"event":"open","id":"a"}\n{"event":"start","id":"b"}\n{"event":"start","id":"c"}\n{"event":"end","id":"b"}\n{"event":"sta',
    );
    await (await openIn(folder)).audit.close();
    await (await openIn(folder)).audit.close();
    const ends = readFileSync(file, "utf8").split("\n").filter((line) => line.includes('"lost"')).map((line) => JSON.parse(line).id);
    assert.deepEqual(ends, ["a", "c"]);
  });

  it("tells tunnels of one request id apart, in this process and after a crash", async () => {
    using folder = new Folder();
    const file = join(folder.path, "audit.jsonl");
    const line = (event: string, tunnel: string) => `${JSON.stringify({ event, id: "same", tunnel })}\n`;
    appendFileSync(file, line("start", "1") + line("start", "2") + line("end", "1") + line("start", "3"));
    const { audit } = await openIn(folder);
    await audit.start({ id: "same", tunnel: "4", ...START });
    await audit.start({ id: "same", tunnel: "5", ...START });
    audit.end({ id: "same", tunnel: "4", outcome: "completed" });
    audit.end({ id: "same", tunnel: "5", outcome: "broken" });
    await audit.close();
    const ends = read(file).filter(({ event }) => event === "end").map(({ tunnel, outcome }) => [tunnel, outcome]);
    assert.deepEqual(ends, [["1", undefined], ["2", "lost"], ["3", "lost"], ["4", "completed"], ["5", "broken"]]);
  });

  it("leaves the ends of a process to that process while it runs", async () => {
    using folder = new Folder();
    const { audit: earlier, file } = await openIn(folder);
    await earlier.start({ id: "a", tunnel: "a", ...START });
    earlier.share();
    const { audit: later } = await openIn(folder, { hasPredecessor: true });
    await later.start({ id: "b", tunnel: "b", ...START });
    later.end({ id: "b", tunnel: "b", outcome: "completed" });
    await later.close();
    earlier.end({ id: "a", tunnel: "a", outcome: "completed" });
    await earlier.close();
    assert.deepEqual(events(file).toSorted(), ["end a completed", "end b completed", "start a", "start b"]);
  });

  it("of a worker gets the ends that the one before has left out, and those of all when the first one starts", async () => {
    using folder = new Folder();
    const open = async (index: number, isFirst = false) => (await openIn(folder, { worker: { index, isFirst } })).audit;
    const file = join(folder.path, "audit.jsonl");
    appendFileSync(file, '{"event":"start","id":"before"}\n');
    const workers = [await open(0, true), await open(1)];
    for (const [index, audit] of workers.entries()) await audit.start({ ...nameOf(`a${index}`), ...START });
    while (read(file).length < 4) await new Promise(setImmediate);
    const [again] = [await open(1)]; // the one before was killed
    await again.close();
    workers[0]!.end({ ...nameOf("a0"), outcome: "completed" });
    await workers[0]!.close();
    const ends = () => events(file).filter((event) => event.startsWith("end"));
    assert.deepEqual(ends(), ["end before lost", "end a1 lost", "end a0 completed"]);
    assert.equal(read(file).find(({ id }) => id === "a1").worker, 1);
    const next = await open(0, true);
    await next.close();
    assert.equal(ends().length, 3);
    appendFileSync(file, '{"event":"start","id":"b1","worker":1}\n');
    await (await open(0)).close();
    assert.equal(ends().length, 3, "another worker may have it open");
    await (await open(0, true)).close();
    assert.equal(ends().at(-1), "end b1 lost");
    await workers[1]!.close();
  });

  it("leaves tunnels open when the same process opens the file again", async () => {
    using folder = new Folder();
    const { audit, file } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    while (!readFileSync(file, "utf8").endsWith("\n")) await new Promise(setImmediate);
    const { audit: next } = await openIn(folder, { strict: true, previous: audit });
    audit.continueIn(next);
    await audit.close();
    next.end({ ...nameOf("a"), outcome: "completed" });
    await next.close();
    assert.deepEqual(events(file), ["start a", "open a", "end a completed"]);
  });

  it("ends tunnels that are open when it is closed", async () => {
    using folder = new Folder();
    const { audit, file } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    await audit.close();
    assert.deepEqual(events(file), ["start a", "end a lost"]);
  });

  it("goes on in a new file after a rotation, which lists the open tunnels first", async () => {
    using folder = new Folder();
    const { audit, file } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    await audit.start({ ...nameOf("b"), ...START });
    audit.end({ ...nameOf("b"), outcome: "completed" });
    await audit.reopen(); // nothing has changed
    while (!readFileSync(file, "utf8").includes("completed")) await new Promise(setImmediate);
    renameSync(file, `${file}.1`);
    await audit.reopen();
    audit.end({ ...nameOf("a"), outcome: "broken" });
    await audit.close();
    assert.deepEqual(events(`${file}.1`), ["start a", "start b", "end b completed"]);
    assert.deepEqual(events(file), ["open a", "end a broken"]);
  });

  it("notices a rotation by itself", async () => {
    using folder = new Folder();
    const { audit, file, lines } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    while (!statSync(file).size) await new Promise(setImmediate);
    renameSync(file, `${file}.1`);
    while (!lines.includes("audit log was rotated")) await new Promise((resolve) => setTimeout(resolve, 10));
    await audit.close();
    assert.deepEqual(events(file), ["open a", "end a lost"]);
  });

  const hasFull = process.platform === "linux" ? false : "there is no /dev/full here";

  it("refuses tunnels when it is strict and the disk is full", { skip: hasFull }, async () => {
    using folder = new Folder();
    const { audit, counts, lines } = await openIn(folder, { file: "/dev/full", strict: true });
    await assert.rejects(audit.start({ ...nameOf("a"), ...START }), TunnelError);
    audit.end({ ...nameOf("a"), outcome: "failed" }); // it was not started
    await audit.close();
    assert.deepEqual(counts, { written: 0, lost: 1 });
    assert.equal(lines.length, 1);
  });

  it("counts what it loses otherwise", { skip: hasFull }, async () => {
    using folder = new Folder();
    const { audit, counts } = await openIn(folder, { file: "/dev/full" });
    await audit.start({ ...nameOf("a"), ...START });
    audit.end({ ...nameOf("a"), outcome: "completed" });
    await audit.close();
    assert.deepEqual(counts, { written: 0, lost: 2 });
  });

  it("has the ends of tunnels whatever waits for the disk", async () => {
    using folder = new Folder();
    const { audit, file, counts } = await openIn(folder);
    await audit.start({ ...nameOf("a"), ...START });
    for (const size of [1 << 20, 1 << 10, 1]) { // until nothing else fits
      for (const before = counts.lost; counts.lost === before;) audit.refused({ ...nameOf("b"), ...START, reason: "x".repeat(size) });
    }
    audit.end({ ...nameOf("a"), outcome: "broken", reason: "x".repeat(1_000) });
    await audit.close();
    assert.equal(events(file).at(-1), "end a broken");
  });

  it("bounds what waits for the disk", async () => {
    using folder = new Folder();
    const { audit, counts } = await openIn(folder);
    const reason = "x".repeat(1 << 20);
    for (let i = 0; i < 8; i++) audit.refused({ ...nameOf(String(i)), ...START, reason });
    await audit.close();
    assert.ok(counts.lost >= 4 && counts.written + counts.lost === 8, JSON.stringify(counts));
  });
});
