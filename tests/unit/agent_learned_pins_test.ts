// Pins that a proxy announces: for which settings they count, how long, and how many are stored.
import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { LearnedPins } from "../../agent/learned_pins.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const pin = (letter: string) => `sha256/${letter.repeat(43)}=`;
const [own, next, later] = [pin("a"), pin("b"), pin("c")];
const TLS = { pinSha256: [own] };
const ADDRESS = "proxy.example:4242";

describe("pins that a proxy has announced", () => {
  it("count beside the configured ones, for its address, also after a restart, until it announces others", async () => {
    using folder = new Folder();
    const log = new LogBook();
    const pins = await LearnedPins.open(folder.path, log);
    pins.learn(ADDRESS, TLS, [own, next]);
    assert.equal(log.logged("the proxy has announced its next key")[0]!.pins, next);
    assert.deepEqual(pins.extend(ADDRESS, TLS).pinSha256, [own, next]);
    assert.equal(pins.extend("other.example:4242", TLS), TLS);
    await pins.close();
    const file = join(folder.path, "agent-pins.json");
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const again = await LearnedPins.open(folder.path, log);
    assert.deepEqual(again.extend(ADDRESS, TLS).pinSha256, [own, next]);
    // after the change, the proxy announces what it has then
    again.learn(ADDRESS, TLS, [next, later]);
    assert.deepEqual(again.extend(ADDRESS, TLS).pinSha256, [own, next, later]);
    // another key than the announced one is that of another proxy at the address
    again.learn(ADDRESS, TLS, [next]);
    again.learn(ADDRESS, TLS, [pin("d")]);
    assert.deepEqual(again.extend(ADDRESS, TLS).pinSha256, [own, next, pin("d")]);
    await again.close();
  });

  it("are neither stored nor used without a pin, without verification, or for other configured pins", async () => {
    using folder = new Folder();
    const pins = await LearnedPins.open(folder.path, new LogBook());
    for (const tls of [{}, { ...TLS, insecureSkipVerify: true }]) {
      pins.learn(ADDRESS, tls, [own, next]);
      assert.equal(pins.extend(ADDRESS, tls), tls);
    }
    pins.learn(ADDRESS, TLS, [own, next]);
    const other = { pinSha256: [pin("e")] };
    assert.equal(pins.extend(ADDRESS, other), other);
    await pins.close();
  });

  it("are bounded in the file, and a file that was edited is ignored", async () => {
    using folder = new Folder();
    const pins = await LearnedPins.open(folder.path, new LogBook());
    for (let i = 0; i < 100; i++) pins.learn(`proxy-${i}.example:4242`, TLS, [own, next]);
    for (const letter of "ABCDEFGHIJKLMNOP") pins.learn(ADDRESS, TLS, [pin(letter)]);
    await pins.close();
    const file = join(folder.path, "agent-pins.json");
    const stored = JSON.parse(readFileSync(file, "utf8"));
    assert.deepEqual([Object.keys(stored).length, stored[ADDRESS].proxies.length], [64, 8]);
    writeFileSync(file, JSON.stringify({ [ADDRESS]: { ...stored[ADDRESS], proxies: [["all"]] } }));
    assert.equal((await LearnedPins.open(folder.path, new LogBook())).extend(ADDRESS, TLS), TLS);
  });
});
