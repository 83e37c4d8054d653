// How the bench starts other tools and reads its network's options.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { problemOf as problemOfNetwork } from "../bench/network.ts";
import { problemOf, TOOLS } from "../bench/tools.ts";

const ADDRESSES = { server: "198.18.0.1:1001", entrance: "198.18.0.1:1002", origin: "198.18.0.2:1003" };

describe("another tool of the bench", () => {
  for (const tool of ["frp", "chisel"] as const) {
    it(`forwards the entrance to the origin: ${tool}`, () => {
      const files: string[] = [];
      const write = (name: string, text: string) => {
        files.push(text);
        return name;
      };
      const { server, client } = TOOLS[tool].ends({ ...ADDRESSES, path: "/opt", udp: false, write });
      const [serverText, clientText] = files.length === 2 ? files : [server.join(" "), client.join(" ")];
      assert.match(serverText!, /198\.18\.0\.1/);
      assert.match(serverText!, /1001/);
      for (const port of ["1001", "1002", "1003"]) assert.ok(clientText!.includes(port), `${port} in ${clientText}`);
    });
  }

  it("forwards a UDP port if it can", () => {
    const files: string[] = [];
    const write = (name: string, text: string) => {
      files.push(text);
      return name;
    };
    const able = Object.values(TOOLS).filter(({ hasUdp }) => hasUdp);
    assert.deepEqual(able.map(({ title }) => title), ["frp"]);
    for (const { ends } of able) ends({ ...ADDRESSES, path: "/opt", udp: true, write });
    assert.match(files.at(-1)!, /type = "udp"/);
  });

  it("is refused if its executable is missing", () => {
    assert.equal(problemOf({ kind: "tool", name: "frp", tool: "frp", path: "/nowhere" }), "Cannot use --frp: there is no /nowhere/frps");
  });
});

describe("the network of the bench", () => {
  it("needs root for a veth, and a congestion control that the kernel has", { skip: process.platform !== "linux" && "needs Linux" }, () => {
    const problem = problemOfNetwork({ veth: true, tcpCongestion: "vegas-of-tomorrow", roundTripMs: 0 });
    assert.match(
      problem ?? "",
      process.getuid?.() === 0 ? /^Cannot use --tcp-congestion: this kernel has .*vegas-of-tomorrow/ : /--veth: only root/,
    );
    assert.equal(problemOfNetwork({ veth: false, tcpCongestion: "cubic", roundTripMs: 0 }), undefined);
  });
});
