// How forwards are written, and which options of clients exclude each other.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { formatSshConfig } from "../../client/connect.ts";
import { parseForward } from "../../client/forward.ts";
import { ConfigError } from "../../shared/config/option.ts";

describe("a forward", () => {
  const rows: [text: string, listen: string, host: string, port: number][] = [
    ["5432:db:5433", "127.0.0.1:5432", "db", 5433],
    ["0:10.0.0.5:80", "127.0.0.1:0", "10.0.0.5", 80],
    ["0.0.0.0:8080:db:80", "0.0.0.0:8080", "db", 80],
    ["localhost:8080:db.site7.rhttp:80", "localhost:8080", "db.site7.rhttp", 80],
    ["[::1]:8080:[2001:db8::1]:80", "[::1]:8080", "2001:db8::1", 80],
    ["8080:[::1]:80", "127.0.0.1:8080", "::1", 80],
  ];
  for (const [text, listen, host, port] of rows) {
    it(`is ${listen} and ${host} for ${text}`, () => {
      assert.deepEqual(parseForward(text), { listen, destination: { host, port } });
    });
  }

  it("is refused in any other form, with what is meant", () => {
    for (const text of ["", "80", "80:db", "db:80", ":80:db:80", "80:db:", "80:db:0", "70000:db:1", "80:a b:1", "80::1"]) {
      assert.throws(
        () => parseForward(text),
        (error) => error instanceof ConfigError && error.message.includes(JSON.stringify(text)),
        text,
      );
    }
  });
});

describe("lines for ssh", () => {
  it("quote words for the shell, and percent signs for ssh", () => {
    const lines = formatSshConfig(["reverse-http", "connect", "--profile=/a b/100%'s"], "site7", { host: "db", port: 2222 });
    assert.equal(
      lines,
      `# db:2222 as the agent site7 reaches it
Host db.site7
  HostName db
  Port 2222
  HostKeyAlias db.site7
  ProxyCommand reverse-http connect '--profile=/a b/100%%'\\''s' %h:%p
`,
    );
  });
});
