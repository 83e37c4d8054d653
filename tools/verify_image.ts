// Builds the image for both processors with buildah from the executables of `deno task build --target`, checks its metadata, and starts its
// executable as a container engine does: as the image's user, on a read-only file system. Needs Linux and root, and qemu-user for the other
// processor.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chownSync, copyFileSync, existsSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { makeAuthority } from "../testing/certificates.ts";
import { Folder, runToEnd, writeCertificates } from "../testing/programs.ts";
import { freePort } from "../testing/store_servers.ts";
import { home, manifest, ROOT } from "./executables.ts";
import { hostTarget, type TargetName, TARGETS } from "./targets.ts";
import { Checks } from "./verify/check.ts";
import { fetchPage } from "./verify/page.ts";
import { copyGlibc, inContainer } from "./verify/place.ts";

const PLATFORMS = ["linux-x64", "linux-arm64"] as const satisfies readonly TargetName[];
const AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt";
const USER = "65532:65532";

/** The output of `buildah inspect --type image`. */
interface Inspected {
  readonly OCIv1: {
    readonly architecture: string;
    readonly os: string;
    readonly config: {
      readonly User: string;
      readonly Entrypoint: string[];
      readonly Cmd?: string[];
      readonly Labels: Record<string, string>;
    };
  };
}

/** Runs buildah and returns its standard output. */
function buildah(...args: string[]): string {
  // chroot works without a container runtime, vfs without an overlay file system
  const env = { ...process.env, BUILDAH_ISOLATION: "chroot", STORAGE_DRIVER: "vfs" };
  const { status, stdout, stderr, error } = spawnSync("buildah", args, { cwd: ROOT, env, encoding: "utf8", maxBuffer: 1 << 28 });
  assert.equal(status, 0, `buildah ${args.join(" ")}: ${error?.message ?? stderr}`);
  return stdout.trim();
}

/** Images and containers of buildah, which are deleted at the end. */
class Store implements Disposable {
  readonly #images: string[] = [];
  readonly #containers: string[] = [];

  /** A base image with the parts of the usual one that the executable needs: this machine's glibc, and certificate authorities. */
  makeBase(target: TargetName): string {
    const { arch } = TARGETS[target];
    const container = buildah("from", "--arch", arch, "scratch");
    this.#containers.push(container);
    const root = buildah("mount", container);
    for (const folder of ["proc", "dev", "etc/ssl/certs"]) mkdirSync(join(root, folder), { recursive: true });
    copyFileSync(AUTHORITIES, join(root, AUTHORITIES));
    copyGlibc(target, root);
    const image = `localhost/reverse-http-base:${arch}-${process.pid}`;
    buildah("commit", "--quiet", container, image);
    this.#images.push(image);
    return image;
  }

  build(target: TargetName, base: string | undefined): string {
    const { arch } = TARGETS[target];
    const image = `localhost/reverse-http:${arch}-${process.pid}`;
    const values = { VERSION: manifest().version, COMMIT: "0".repeat(40), DATE: "2026-01-01T00:00:00Z", ...base && { BASE: base } };
    const args = Object.entries(values).flatMap(([name, value]) => ["--build-arg", `${name}=${value}`]);
    buildah("bud", "--quiet", "--platform", `linux/${arch}`, ...args, "--tag", image, ".");
    this.#images.push(image);
    return image;
  }

  /** The folder with a container's root file system. */
  mount(image: string): string {
    const container = buildah("from", "--pull-never", image);
    this.#containers.push(container);
    return buildah("mount", container);
  }

  [Symbol.dispose](): void {
    for (const container of this.#containers) buildah("rm", container);
    for (const image of this.#images.reverse()) buildah("rmi", image);
  }
}

async function verify(checks: Checks, target: TargetName, made: boolean): Promise<void> {
  const { arch } = TARGETS[target];
  using store = new Store();
  let image = "";
  await checks.run(`the image for ${arch} is built`, () => void (image = store.build(target, made ? store.makeBase(target) : undefined)));
  if (image === "") return;
  await checks.run(`the image for ${arch} has the right metadata, and starts the executable as an unprivileged user`, () => {
    const { OCIv1: { architecture, os, config } } = JSON.parse(buildah("inspect", "--type", "image", image)) as Inspected;
    assert.deepEqual([os, architecture], ["linux", arch]);
    assert.deepEqual([config.User, config.Entrypoint, config.Cmd ?? null], [USER, ["/reverse-http"], null]);
    const { url } = home();
    for (const [name, value] of Object.entries({ source: url, licenses: "Apache-2.0", version: manifest().version })) {
      assert.equal(config.Labels[`org.opencontainers.image.${name}`], value);
    }
  });
  const root = store.mount(image);
  await checks.run(`the image for ${arch} holds what was built for it, and no shell`, () => {
    for (const file of ["reverse-http", "reverse-http.node"]) {
      assert.equal(statSync(join(root, file)).mode & 0o777, 0o755);
      assert.equal(spawnSync("cmp", [join(root, file), join(ROOT, "dist", target, file)]).status, 0, `/${file} is another`);
    }
    for (const shell of ["bin/sh", "bin/bash", "busybox"]) assert.ok(!existsSync(join(root, shell)), shell);
    assert.deepEqual([statSync(join(root, "var/lib/reverse-http")).uid, statSync(join(root, "var/lib/reverse-http")).gid], [65532, 65532]);
    const bytes = Number(spawnSync("du", ["-sxb", root], { encoding: "utf8" }).stdout.split("\t")[0]);
    console.log(`     the image for ${arch} takes ${(bytes / 1e6).toFixed(1)} MB`);
  });
  await checks.run(`the image for ${arch} brings a page and is well, on a read-only file system and without privileges`, async () => {
    using folder = new Folder();
    await writeCertificates(folder, await makeAuthority());
    mkdirSync(join(root, "certs"));
    for (const file of ["ca.pem", "cert.pem", "key.pem"]) {
      copyFileSync(join(folder.path, file), join(root, "certs", file));
      chownSync(join(root, "certs", file), 65532, 65532);
    }
    const place = inContainer(target, root, USER);
    const admin = `127.0.0.1:${await freePort()}`;
    const healthcheck = async (wanted: number) => {
      const [file = "", ...words] = place.command("reverse-http");
      const env = { PATH: process.env.PATH!, REVERSE_HTTP_ADMIN_LISTEN_ADDRESS: admin };
      const { exitCode, stderr } = await runToEnd(file, [...words, "healthcheck"], { env });
      assert.equal(exitCode, wanted, stderr);
    };
    await fetchPage(
      place,
      [["reverse-http", "proxy"], ["reverse-http", "agent"]],
      [`--admin.listen-address=${admin}`],
      () => healthcheck(0),
    );
    await healthcheck(1);
  });
}

const { values } = parseArgs({ options: { "own-base": { type: "boolean", default: false } } });
const missing = PLATFORMS.filter((target) => !existsSync(join(ROOT, "dist", target)));
if (missing.length > 0 || process.platform !== "linux" || process.getuid?.() !== 0) {
  console.error(
    missing.length > 0
      ? `Cannot build an image of what is not built: run deno task build --target ${missing.join(",")}`
      : "Cannot start what is in an image: only root on Linux can. Run this with sudo",
  );
  process.exit(2);
}
const checks = new Checks();
// this machine's own first
for (const target of [...PLATFORMS].sort((a, b) => Number(b === hostTarget()) - Number(a === hostTarget()))) {
  await verify(checks, target, values["own-base"]);
}
checks.exit();
