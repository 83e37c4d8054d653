// Links, options, variables and metrics in documents must exist. The system tests run the commands.
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, it } from "node:test";
import { parse } from "yaml";
import { OPERATORS } from "../../admin/options.ts";
import { CLIENTS, forwardProfile } from "../../client/options.ts";
import { SERVICES } from "../../services.ts";
import { readConfig } from "../../shared/config/file.ts";
import { readPolicy } from "../../shared/policy/read.ts";
import { envOf, type Option } from "../../shared/config/option.ts";
import { anchorsOf, linksOf, readDocument, readDocuments } from "../../testing/documents.ts";
import { parseTargets, TARGETS } from "../../tools/targets.ts";
import { ROOT } from "../../testing/programs.ts";
import { quote } from "../bench/quotes.ts";

const families = [SERVICES, CLIENTS, OPERATORS].flatMap((all): Readonly<Record<string, Option>>[] => Object.values(all));
const options = families.flatMap((all) => Object.entries(all));
const names = new Set(options.map(([name]) => name));
const variables = new Set(options.map(([name, option]) => envOf(name, option)));

/** Variables of the compose files and their script. */
const OTHERS = new Set(["REVERSE_HTTP_IMAGE", "REVERSE_HTTP_USER"]);

/** The text files that mention options. */
function texts(): [name: string, text: string][] {
  const deploy = readdirSync(join(ROOT, "deploy"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name))
    .filter((file) => /\.(ya?ml|conf|sh|service|socket|env|md)$/.test(file));
  return [
    ...readDocuments().map(({ name, text }): [string, string] => [name, text]),
    ...deploy.map((file): [string, string] => [
      file.slice(ROOT.length + 1),
      readFileSync(file, "utf8"),
    ]),
  ];
}

/** All sources in these folders, as one text. */
function sources(...folders: string[]): string {
  return folders.flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
      .filter(({ name }) => /\.(ts|rs)$/.test(name))
      .map(({ parentPath, name }) => readFileSync(join(parentPath, name), "utf8"))
  ).join("\n");
}

describe("forms of issues", () => {
  const folder = join(ROOT, ".github", "ISSUE_TEMPLATE");
  const forms = readdirSync(folder).filter((file) => file !== "config.yml");
  for (const file of forms) {
    it(`have the fields that GitHub requires, in ${file}`, () => {
      const form = parse(readFileSync(join(folder, file), "utf8")) as Record<string, unknown> & { body: Record<string, unknown>[] };
      assert.ok(form.name && form.description);
      const fields = form.body.filter(({ type }) => type !== "markdown");
      for (const { type, id, attributes } of fields) {
        assert.match(String(type), /^(textarea|input|dropdown|checkboxes)$/);
        assert.ok(id && (attributes as { label?: string }).label, `${file}: ${JSON.stringify(attributes)}`);
      }
      assert.equal(new Set(fields.map(({ id }) => id)).size, fields.length);
    });
  }

  it("exist, and refer to another place for vulnerabilities", () => {
    assert.ok(forms.length > 1);
    const { contact_links: links } = parse(readFileSync(join(folder, "config.yml"), "utf8")) as { contact_links: { url: string }[] };
    assert.ok(links.some(({ url }) => url.endsWith("/security/advisories/new")));
    for (const { url } of links) {
      const [, path, anchor] = /\/blob\/main\/([^#]+)#(.+)$/.exec(url) ?? [];
      if (path !== undefined) assert.ok(anchorsOf(readDocument(path)).has(anchor!), url);
    }
  });
});

describe("documents", () => {
  it("name existing options", () => {
    for (const [name, text] of texts()) {
      for (const [, option] of text.matchAll(/(?<![\w-])--([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)+)/g)) {
        const group = option!.endsWith(".") || [...names].some((known) => known.startsWith(`${option}.`));
        assert.ok(names.has(option!) || group, `${name}: there is no --${option}`);
      }
    }
  });

  it("name existing variables", () => {
    for (const [name, text] of texts()) {
      for (const [variable] of text.matchAll(/\bREVERSE_HTTP_[A-Z0-9_]*[A-Z0-9]\b/g)) {
        assert.ok(variables.has(variable) || OTHERS.has(variable), `${name}: there is no ${variable}`);
      }
    }
  });

  it("run only the executable and the units that installer, package and image leave", () => {
    const packaged = readFileSync(join(ROOT, "deploy", "packages", "nfpm.yaml"), "utf8");
    for (const { name, text, blocks } of readDocuments()) {
      const shell = blocks.filter(({ language }) => language === "sh").map(({ code }) => code).join("\n");
      const inline = Array.from(text.matchAll(/`([^`\n]+)`/g), ([, code]) => code!).join("\n");
      for (const [command] of `${shell}\n${inline}`.matchAll(/^\s*(?:sudo )?reverse-http-\w+(?= )/gm)) {
        assert.fail(`${name}: ${command.trim()} is not installed by default, write reverse-http proxy, agent or lb`);
      }
      for (const [, unit] of text.matchAll(/\bsystemctl [^`\n]*?(reverse-http[\w@-]*)/g)) {
        assert.ok(packaged.includes(`/usr/lib/systemd/system/${unit}.service`), `${name}: the package has no unit ${unit}`);
      }
    }
    assert.match(packaged, /dst: \/usr\/bin\/reverse-http$/m);
    assert.match(readFileSync(join(ROOT, "Dockerfile"), "utf8"), /^ENTRYPOINT \["\/reverse-http"\]$/m);
  });

  it("name existing tasks and targets", () => {
    const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8")) as { tasks: Record<string, unknown> };
    const rust = new Set<string>(Object.values(TARGETS).map((target) => target.rust));
    for (const [name, text] of texts()) {
      for (const [, task] of text.matchAll(/\bdeno(?:@[\d.]+)? task ([\w-]+)/g)) {
        assert.ok(task! in tasks, `${name}: there is no task ${task}`);
      }
      for (const [, targets] of text.matchAll(/--target[= ]([a-z][\w,-]*)/g)) assert.doesNotThrow(() => parseTargets([targets!]), name);
      for (const [, triples] of text.matchAll(/rustup target add ([\w -]+)/g)) {
        for (const triple of triples!.split(" ")) assert.ok(rust.has(triple), `${name}: ${triple} is no target`);
      }
    }
  });

  it("use one version of Deno, that of the workflows", () => {
    const workflows = readdirSync(join(ROOT, ".github", "workflows")).map((file) =>
      readFileSync(join(ROOT, ".github", "workflows", file), "utf8")
    );
    const versions = [...texts().map(([, text]) => text), ...workflows].flatMap((text) => text.match(/\bdeno@[\d.]+\d/g) ?? []);
    assert.ok(versions.length > 5);
    assert.equal(new Set(versions).size, 1, String(versions));
  });

  it("quote messages that the program contains", () => {
    const [, rows = ""] = readDocument("docs/operating.md").text.split("## Troubleshooting");
    const quotes = Array.from(
      rows.matchAll(/^\| ([^|]*) \|/gm),
      ([, symptom]) => Array.from(symptom!.matchAll(/`([^`]+)`/g), ([, q]) => q!),
    ).flat();
    assert.ok(quotes.length > 5);
    const said = sources("shared", "proxy", "agent", "lb", "native/src");
    for (const quote of quotes) {
      // of rustls, which quotes nothing of ours
      if (quote === "UnknownIssuer") continue;
      for (const part of quote.split(/…;?|\?/).map((part) => part.trim())) {
        assert.ok(said.includes(part), `no program says ${JSON.stringify(part)}`);
      }
    }
  });

  it("name all metrics and no others", () => {
    const there = new Set(Array.from(sources("shared", "proxy", "agent", "lb").matchAll(/"(reverse_http_[a-z_]+)"/g), ([, name]) => name!));
    const told = new Set(Array.from(readDocument("docs/metrics.md").text.matchAll(/`(reverse_http_[a-z_]+)/g), ([, name]) => name!));
    assert.deepEqual([...told].sort(), [...there].sort());
    for (const [name, text] of texts()) {
      for (const [, metric] of text.matchAll(/`(reverse_http_[a-z_]+)/g)) assert.ok(there.has(metric!), `${name}: there is no ${metric}`);
    }
  });

  it("quote values as the bench has measured them", () => {
    const prose = (name: string) => readDocument(name).text.replace(/\s+/g, " ");
    const scaling = prose("docs/scaling.md");
    const value = (text: string) => Number(text.replaceAll(",", ""));
    const handshakes = value(quote("agents", "agents.connected")) / value(quote("agents", "agents.connectSeconds"));
    const quotes: [text: string, pattern: RegExp, measured: string][] = [
      [scaling, /([\d.]+) KiB of its memory each/, quote("agents", "agents.proxyKiBEach")],
      [scaling, /([\d.]+) % of a core to keep them alive/, quote("agents", "agents.proxyCpuPercent")],
      [scaling, /([\d.,]+) handshakes a second/, handshakes.toFixed(0)],
      [scaling, /a proxy opens ([\d,]+) a second/, quote("mtu-1500", "rate50.perSecond")],
      [scaling, /takes ([\d.]+) s of CPU time for 1,000/, quote("mtu-1500", "rate50.proxyCpuPer1000")],
      [scaling, /lb takes ([\d.]+) s/, quote("scale", "lb-rate50.lbCpuPer1000")],
      [scaling, /([\d.]+) s of CPU time a GB in the proxy/, quote("mtu-1500", "down.proxyCpuPerGB")],
      [prose("README.md"), /1 % loss, ([\d.]+) MB\/s/, Math.round(value(quote("lossy", "lossy.mbPerSecond"))).toString()],
    ];
    for (const [text, pattern, measured] of quotes) assert.equal(value(pattern.exec(text)?.[1] ?? ""), value(measured), String(pattern));
  });

  it("show valid configuration files", async () => {
    const files = readDocuments().flatMap(({ name, blocks }) =>
      blocks.filter(({ language }) => language === "yaml").map(({ code }) => [name, code] as const)
    );
    assert.ok(files.length > 0);
    for (const [name, text] of files) {
      const file = { name: "config.yaml", text };
      if (name === "docs/policy.md") await readPolicy(text, Date.now());
      else if (name === "docs/client.md") readConfig(forwardProfile, file);
      else readConfig(SERVICES.proxy, file, SERVICES);
    }
  });

  it("link to existing files and headings", () => {
    for (const document of readDocuments()) {
      for (const target of linksOf(document)) {
        if (/^(https?|mailto):/.test(target)) continue;
        const [path, anchor] = target.split("#") as [string, string?];
        const file = path === "" ? document.name : normalize(join(dirname(document.name), path));
        assert.ok(existsSync(join(ROOT, file)), `${document.name}: there is no ${target}`);
        if (anchor !== undefined) assert.ok(anchorsOf(readDocument(file)).has(anchor), `${document.name}: ${file} has no ${anchor}`);
      }
    }
  });

  it("are all linked from the README or from the index of decisions", () => {
    const links = linksOf(readDocument("README.md"));
    const decisions = linksOf(readDocument("docs/adr/README.md")).map((link) => join("docs/adr", link));
    const names = readDocuments().map(({ name }) => name).filter((name) => /^docs\/|^[A-Z_]+\.md$/.test(name) && name !== "README.md");
    assert.ok(names.includes("ARCHITECTURE.md") && names.includes("CONTRIBUTING.md"));
    for (const name of names) assert.ok(links.includes(name) || decisions.includes(name), name);
  });

  it("for contributors name existing files and folders", () => {
    for (
      const name of [
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/reliability.md",
        ...readdirSync(join(ROOT, "docs/adr")).map((file) => `docs/adr/${file}`),
      ]
    ) {
      const paths = Array.from(readDocument(name).text.matchAll(/`([a-z][\w.-]*\/[\w./-]*)`/g), ([, path]) => path!);
      // neither what a build makes, nor folders of other machines
      for (const path of paths.filter((path) => existsSync(join(ROOT, path.split("/")[0]!)) && !/^(dist|native\/crates)\//.test(path))) {
        assert.ok(existsSync(join(ROOT, path)), `${name}: there is no ${path}`);
      }
    }
  });

  it("of decisions are numbered and dated, and have the alternatives", () => {
    const files = readdirSync(join(ROOT, "docs/adr")).filter((file) => file !== "README.md").sort();
    assert.ok(files.length > 5);
    for (const [i, file] of files.entries()) {
      const { text } = readDocument(join("docs/adr", file));
      assert.ok(file.startsWith(`${String(i + 1).padStart(4, "0")}-`), file);
      assert.match(text, new RegExp(`^# ${i + 1}\\. .+\n\nStatus: (accepted|replaced by \\[.+), [A-Z][a-z]+ 20\\d\\d\n`), file);
      const headings = Array.from(text.matchAll(/^## (.*)$/gm), ([, heading]) => heading!);
      assert.deepEqual(headings.slice(0, 3), ["Context", "Decision", "Alternatives"], file);
    }
  });
});
