// The project's URL has one source, the homepage in deno.json: to move the project, change that line and run `deno task home`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { home, ROOT } from "../../tools/executables.ts";
import { rehome, texts } from "../../tools/repository_url.ts";

const { url, image } = home();

/** Other projects that are linked to or used. */
const OTHERS = [
  "anchore/quill",
  "apple-oss-distributions/xnu",
  "goreleaser/nfpm",
  "grepplabs/reverse-http",
  "package-url/purl-spec",
  "quinn-rs/quinn",
  "rhysd/actionlint",
  "rust-lang/crates.io-index",
  "rustls/rustls",
].map((name) => `https://github.com/${name}`);

describe("home of the project", () => {
  it("is that of deno.json wherever a repository or an image is named", () => {
    const wrong: string[] = [];
    const right = new Set<string>();
    for (const file of texts()) {
      for (const [number, line] of readFileSync(join(ROOT, file), "utf8").split("\n").entries()) {
        for (const [found] of line.matchAll(/\b(?:github\.com|ghcr\.io)\/[\w-]+\/[\w-]+(?:\.(?!git\b)[\w-]+)*/g)) {
          const full = found.startsWith("ghcr") ? found : `https://${found}`;
          if (full === url || full === image) right.add(file);
          else if (!OTHERS.includes(full)) {
            wrong.push(`${file}:${number + 1} says ${full} instead of ${found.startsWith("ghcr") ? image : url}`);
          }
        }
      }
    }
    assert.deepEqual(wrong, []);
    for (const file of ["README.md", "Dockerfile", "install.sh", "deploy/README.md", "docs/getting-started.md"]) {
      assert.ok(right.has(file), file);
    }
  });

  it("is replaced everywhere, and back", () => {
    const [here, fork] = [home(), home("https://github.com/Nobody/its.fork")];
    for (const file of texts()) {
      const text = readFileSync(join(ROOT, file), "utf8");
      const moved = rehome(text, here, fork);
      assert.ok(!moved.includes(here.url) && !moved.includes(here.image), file);
      assert.equal(rehome(moved, fork, here), text, file);
    }
    assert.equal(rehome(`${here.url}-other ${here.url}/x ${here.image}:1`, here, fork), `${here.url}-other ${fork.url}/x ${fork.image}:1`);
  });

  it("determines the names in packages and images", () => {
    assert.deepEqual(home("https://github.com/Somebody/My.Fork"), {
      url: "https://github.com/Somebody/My.Fork",
      image: "ghcr.io/somebody/my.fork",
      maintainer: "The reverse-http authors <Somebody@users.noreply.github.com>",
    });
    const packages = readFileSync(join(ROOT, "deploy", "packages", "nfpm.yaml"), "utf8");
    assert.match(packages, /^maintainer: \$\{MAINTAINER\}$[^]*^homepage: \$\{HOMEPAGE\}$/m);
  });

  it("is refused if it is not a repository", () => {
    for (const no of ["", "github.com/a/b", "https://github.com/a", "https://github.com/a/b/", "https://example.com/a/b"]) {
      assert.throws(() => home(no), /Cannot use the homepage ".*" of deno\.json/);
    }
  });
});
