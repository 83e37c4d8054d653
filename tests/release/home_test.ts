// Where the project lives is said once, by the homepage in deno.json: whoever moves it changes that line, and is told here what else to.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { home, ROOT } from "../../tools/executables.ts";

const { url, image } = home();

/** What others have there, and what is linked to or used. */
const OTHERS = [
  "apple-oss-distributions/xnu",
  "goreleaser/nfpm",
  "grepplabs/reverse-http",
  "package-url/purl-spec",
  "quinn-rs/quinn",
  "rhysd/actionlint",
  "rustls/rustls",
].map((name) => `https://github.com/${name}`);

/** Made here, or by others. */
const SKIPPED = /^(\.git|node_modules|dist|target|deno\.lock|Cargo\.lock|home_test\.ts)$/;

function* files(folder = "."): Generator<string> {
  for (const entry of readdirSync(join(ROOT, folder), { withFileTypes: true })) {
    const name = join(folder, entry.name);
    if (SKIPPED.test(entry.name)) continue;
    if (entry.isDirectory()) yield* files(name);
    else if (entry.isFile() && !/\.(node|png|pem)$/.test(name)) yield name;
  }
}

describe("home of the project", () => {
  it("is the one of deno.json wherever a repository or an image is named", () => {
    const wrong: string[] = [];
    const right = new Set<string>();
    for (const file of files()) {
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

  it("gives what packages and images say of it", () => {
    assert.deepEqual(home("https://github.com/Somebody/My.Fork"), {
      url: "https://github.com/Somebody/My.Fork",
      image: "ghcr.io/somebody/my.fork",
      maintainer: "The reverse-http authors <Somebody@users.noreply.github.com>",
    });
    const packages = readFileSync(join(ROOT, "deploy", "packages", "nfpm.yaml"), "utf8");
    assert.match(packages, /^maintainer: \$\{MAINTAINER\}$[^]*^homepage: \$\{HOMEPAGE\}$/m);
  });

  it("is refused where it is no repository", () => {
    for (const no of ["", "github.com/a/b", "https://github.com/a", "https://github.com/a/b/", "https://example.com/a/b"]) {
      assert.throws(() => home(no), /Cannot use the homepage ".*" of deno\.json/);
    }
  });
});
