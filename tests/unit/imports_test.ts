// The rules of ARCHITECTURE.md: the direction of imports, one file that loads the addon, and main.ts files that own the process.
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, it } from "node:test";

const ROOT = join(import.meta.dirname!, "..", "..");
const SOURCES = globSync("{mod.ts,main.ts,services.ts,options.ts,{proxy,agent,lb,client,admin,shared}/**/*.ts}", { cwd: ROOT }).map(
  normalize,
)
  .sort();

/** The text without comments, which may name anything. */
function code(text: string): string {
  return text.replace(/\/\*[^]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "").replace(/\s\/\/ .*$/gm, "");
}

/** The modules that a file's text imports, including types. */
function specifiers(text: string): string[] {
  const found = code(text).matchAll(/\b(?:from|import)\s*\(?\s*(["'])([^"'\n]+)\1/g);
  return [...found].map((match) => match[2]!);
}

/** The modules that are loaded with a file: without types and dynamic imports. */
function staticImports(text: string): string[] {
  const found = code(text).matchAll(/\b(?:import|export)\s+(?!type\b)(?:[\w\s{},*$]+\bfrom\s*)?(["'])([^"'\n]+)\1/g);
  return [...found].map((match) => match[2]!);
}

/** The levels of the sources, the lowest first: folders and files, of which the nearest counts. A file may import its own level and those below. */
const LEVELS: readonly (readonly string[])[] = [
  ["shared/net"],
  ["shared/net/native"],
  ["shared/log", "shared/async", "shared/version.ts", "shared/build.ts", "shared/tunnel/errors.ts", "shared/limits/counters.ts"],
  ["shared/http", "shared/address", "shared/files", "shared/config"],
  ["shared/tls", "shared/auth", "shared/store", "shared/link", "shared/tracing"],
  ["shared/policy"],
  ["shared/tunnel"],
  ["shared/limits"],
  ["shared/service"],
  ["shared/frontend", "shared/cli"],
  ["proxy", "agent", "lb", "client", "admin"],
  ["main.ts", "mod.ts", "services.ts", "options.ts"],
];

function levelOf(file: string): number {
  if (/(^|\/)main\.ts$/.test(file)) return LEVELS.length - 1;
  const paths = LEVELS.flat().filter((path) => file === path || file.startsWith(`${path}/`));
  const nearest = paths.reduce((longest, path) => path.length > longest.length ? path : longest, "");
  const level = LEVELS.findIndex((paths) => paths.includes(nearest));
  assert.ok(level >= 0, `${file} is on no level of this test`);
  return level;
}

/** The code that all client protocols share. */
const WITHOUT_HTTP =
  /^shared\/((tunnel|limits|auth|address)\/|frontend\/(pipeline|authentication|authorization|reset_watch|client_protocol|server|service_frontend)\.ts$)/;

/** Why `file` must not import `target`; `undefined` if it may. */
function problem(file: string, target: string): string | undefined {
  const [from, to] = [file, target].map((path) => path.split("/")[0]!) as [string, string];
  const parts = ["proxy", "agent", "lb", "client", "admin"];
  if (file === "mod.ts" && target === "main.ts") return undefined; // when it is run directly: see below
  if (/(^|\/)main\.ts$/.test(target)) return "no file may import a main.ts";
  if (target === "mod.ts") return "mod.ts is for other programs";
  if (from !== to && parts.includes(from) && parts.includes(to)) return "proxy, agent, lb, client and admin are independent of each other";
  if (/^(tests|testing|tools|build\.ts|native)(\/|$)/.test(target)) return "the product uses neither tests nor tools";
  if (target === "shared/net/native/addon.ts" && file !== "shared/net/native/binding.ts") {
    return "only shared/net/native/binding.ts loads the addon";
  }
  if (WITHOUT_HTTP.test(file) && /^shared\/(http\/|frontend\/http\/)/.test(target)) return "all client protocols use it, not HTTP alone";
  const isNative = target.startsWith("shared/net/native/") && !file.startsWith("shared/net/native/");
  if (isNative && levelOf(file) < LEVELS.length - 1) return "a network is an argument";
  if (levelOf(file) < levelOf(target)) return `${LEVELS[levelOf(file)]} is below ${LEVELS[levelOf(target)]}`;
  return undefined;
}

describe("imports", () => {
  it("are found in every notation", () => {
    const text = `
      import a from "./a.ts";
      import { b,
        c } from './b.ts';
      import type { D } from "./d.ts";
      export * from "./e.ts";
      import "./f.ts";
      const g = await import("./g.ts");
      type H = import("./h.ts").H;
      // import "./comment.ts";
      /* from "./comment.ts" */
    `;
    assert.deepEqual(specifiers(text), ["./a.ts", "./b.ts", "./d.ts", "./e.ts", "./f.ts", "./g.ts", "./h.ts"]);
  });

  it("in a forbidden direction are detected", () => {
    const wrong: [string, string][] = [
      ["proxy/proxy.ts", "agent/options.ts"],
      ["lb/lb.ts", "proxy/options.ts"],
      ["client/tunnel.ts", "lb/dial.ts"],
      ["shared/frontend/server.ts", "proxy/proxy.ts"],
      ["shared/http/head.ts", "shared/frontend/server.ts"],
      ["shared/log/logger.ts", "shared/link/link.ts"],
      ["shared/net/net.ts", "shared/net/native/binding.ts"],
      ["shared/net/native/binding.ts", "shared/log/logger.ts"],
      ["proxy/proxy.ts", "shared/net/native/binding.ts"],
      ["proxy/proxy.ts", "shared/net/native/addon.ts"],
      ["agent/agent.ts", "agent/main.ts"],
      ["shared/cli/run.ts", "testing/sockets.ts"],
      ["shared/tunnel/request.ts", "shared/http/head.ts"],
      ["shared/frontend/pipeline.ts", "shared/frontend/http/proxy.ts"],
      ["proxy/proxy.ts", "mod.ts"],
    ];
    for (const [file, target] of wrong) assert.ok(problem(file, target), `${file} may import ${target}`);
    const right: [string, string][] = [
      ["proxy/main.ts", "shared/net/native/binding.ts"],
      ["mod.ts", "agent/agent.ts"],
      ["agent/agent.ts", "shared/link/link.ts"],
      ["shared/frontend/http/proxy.ts", "shared/http/head.ts"],
      ["shared/frontend/server.ts", "shared/net/net.ts"],
      ["shared/net/native/binding.ts", "shared/net/native/addon.ts"],
    ];
    for (const [file, target] of right) assert.equal(problem(file, target), undefined, `${file} may not import ${target}`);
  });

  it("go in the allowed direction", () => {
    assert.ok(SOURCES.length > 20, "The sources were not found");
    const problems: string[] = [];
    for (const file of SOURCES) {
      for (const specifier of specifiers(readFileSync(join(ROOT, file), "utf8"))) {
        if (!specifier.startsWith(".")) continue;
        const target = normalize(join(dirname(file), specifier));
        if (!existsSync(join(ROOT, target))) problems.push(`${file} imports ${target}, which is not there`);
        const why = problem(file, target);
        if (why !== undefined) problems.push(`${file} imports ${target}: ${why}`);
      }
    }
    assert.deepEqual(problems, []);
  });

  it("of the library load neither command line nor configuration files", () => {
    const loaded = new Set(["mod.ts"]);
    const packages = new Set<string>();
    for (const file of loaded) { // grows meanwhile
      for (const specifier of staticImports(readFileSync(join(ROOT, file), "utf8"))) {
        if (specifier.startsWith(".")) loaded.add(normalize(join(dirname(file), specifier)));
        else packages.add(specifier);
      }
    }
    assert.ok(loaded.has("proxy/proxy.ts") && loaded.has("shared/config/defaults.ts"));
    assert.deepEqual([...loaded].filter((file) => /(^|\/)(main|command|run)\.ts$/.test(file)), []);
    assert.deepEqual([...packages].filter((name) => /^(commander|yaml|node:process)$/.test(name)), []);
    assert.match(readFileSync(join(ROOT, "mod.ts"), "utf8"), /^if \(import\.meta\.main\) await import\("\.\/main\.ts"\);$/m);
  });

  it("of packages are bare names that deno.json has, or node builtins", () => {
    const { imports } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8")) as { imports: Record<string, string> };
    const unknown: string[] = [];
    for (const file of SOURCES) {
      for (const specifier of specifiers(readFileSync(join(ROOT, file), "utf8"))) {
        if (!specifier.startsWith(".") && !specifier.startsWith("node:") && !(specifier in imports)) unknown.push(`${file}: ${specifier}`);
      }
    }
    assert.deepEqual(unknown, []);
  });
});

describe("sources", () => {
  it("leave arguments, exit codes, streams and signals to main.ts", () => {
    const problems: string[] = [];
    for (const file of SOURCES) {
      const text = readFileSync(join(ROOT, file), "utf8");
      if (/(^|\/)main\.ts$/.test(file)) continue;
      // the loader in executables asks where the executable is, and loads; it is held to that below
      const imports = specifiers(text).some((specifier) => /^(node:)?process$/.test(specifier));
      if (imports && file !== "shared/net/native/embedded.ts") problems.push(`${file} imports node:process`);
      // run.ts is given the process by a main.ts
      const given = file === "shared/cli/run.ts";
      const use = /\bprocess\.(argv|exit|exitCode|stdin|stdout|stderr|on|once|kill|abort)\b/.exec(code(text));
      if (use && !given) problems.push(`${file} uses ${use[0]}`);
      const printing = /\bconsole\.\w+/.exec(code(text));
      if (printing) problems.push(`${file} uses ${printing[0]}`);
    }
    assert.deepEqual(problems, []);
  });

  it("use no API that only one runtime has", () => {
    const problems = SOURCES.flatMap((file) => {
      const use = /\b(Deno|Bun)\.\w+/.exec(code(readFileSync(join(ROOT, file), "utf8")));
      return use ? [`${file} uses ${use[0]}`] : [];
    });
    assert.deepEqual(problems, []);
  });
});
