// The image, as far as it can be checked without building it.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { EXECUTABLES } from "../../tools/executables.ts";
import { type Target, TARGETS } from "../../tools/targets.ts";
import { ROOT } from "../../testing/programs.ts";

const dockerfile = readFileSync(join(ROOT, "Dockerfile"), "utf8");
const ignored = readFileSync(join(ROOT, ".dockerignore"), "utf8").trim().split("\n");

describe("Dockerfile", () => {
  it("copies exactly the files in the build context", () => {
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(?:--\S+ )?(.+) \S+$/gm)].flatMap(([, sources]) => sources!.split(" "));
    assert.equal(ignored[0], "*");
    assert.deepEqual(ignored.slice(1).map((line) => line.replace(/^!/, "")).sort(), copied.sort());
  });

  it("has the executable and the engine for every Linux platform with glibc", () => {
    const linux = Object.entries(TARGETS).filter(([, { os, libc }]: [string, Target]) => os === "linux" && libc === "glibc");
    for (const [target, { arch }] of linux) {
      const stage = `FROM scratch AS ${arch}\nCOPY dist/${target}/reverse-http dist/${target}/reverse-http.node /\n`;
      assert.ok(dockerfile.includes(stage), stage);
    }
    assert.ok("reverse-http" in EXECUTABLES);
    assert.match(dockerfile, /^ARG TARGETARCH$/m, "a default wins over the platform that is built for");
  });

  it("starts the executable directly, as an unprivileged user, as the Go project's image does", () => {
    assert.match(dockerfile, /^ENTRYPOINT \["\/reverse-http"\]$/m);
    assert.match(dockerfile, /^USER 65532:65532$/m);
    assert.doesNotMatch(dockerfile, /^(RUN|CMD|SHELL)\b/m);
  });
});
