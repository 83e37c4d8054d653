// Renders the Helm chart with each set of values in its folder ci/, and the kustomizations, checks the objects against the schemas of
// Kubernetes, and the command lines against the options of the program. Needs helm, kubectl, and kubernetes-validate of PyPI.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { cpSync, mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseAllDocuments } from "yaml";
import { checkAgentOptions } from "../agent/agent.ts";
import type { AgentOptions } from "../agent/options.ts";
import { checkLoadBalancerOptions } from "../lb/lb.ts";
import type { LoadBalancerOptions } from "../lb/options.ts";
import { checkProxyOptions } from "../proxy/proxy.ts";
import type { ProxyOptions } from "../proxy/options.ts";
import { makeAuthority } from "../testing/certificates.ts";
import { drainMs, valuesOf } from "../testing/command_lines.ts";
import { Folder } from "../testing/programs.ts";
import { ROOT } from "./executables.ts";

const CHART = join(ROOT, "deploy", "helm", "reverse-http");
const VALUES = join(CHART, "ci");
const KUSTOMIZATIONS = join(ROOT, "deploy", "kubernetes");
/** The version to render for: a helm that was built without one assumes an old one. */
const KUBERNETES = "1.34.0";
/** Kinds that operators define; kubernetes-validate does not know them. */
const CUSTOM_KINDS = ["Certificate", "ServiceMonitor"];
/** Values that must be refused, and what the error says. */
const REFUSED: readonly [values: string, message: RegExp][] = [
  ["{}", /auth\.publicKey or auth\.existingConfigMap is missing/],
  ["auth: { existingConfigMap: keys }\nproxy: { replica: 3 }", /replica/],
  ["proxy: { enabled: false }\nlb: { enabled: false }\nagent: { enabled: true }", /agent\.server is missing/],
  ["auth: { existingConfigMap: keys }\ncertManager: { enabled: true }", /certManager\.issuer\.name is missing/],
  ["auth: { existingConfigMap: keys }\nacme: { enabled: true, agentsName: a.example.com }", /acme\.agentsName and acme\.clientsName/],
  ["auth: { existingConfigMap: keys }\nacme: { enabled: true }\ncertManager: { enabled: true }", /exclude each other/],
  ["auth: { existingConfigMap: keys }\nproxy: { volumes: { tls: { emptyDir: {} } } }", /tls/],
  ["auth: { existingConfigMap: keys }\nlb: { extraPorts: [{ name: clients, port: 443 }] }", /extraPorts/],
  ["auth: { existingConfigMap: keys }\nproxy: { extraPorts: [{ name: '443', port: 443 }] }", /extraPorts/],
  ["auth: { existingConfigMap: keys }\nproxy: { podAnnotations: { number: 1 } }", /podAnnotations/],
];
/** Names of releases: the longest has 53 characters. */
const RELEASES = ["site", "r".repeat(53)];

interface Rendered {
  readonly kind: string;
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly template: { readonly spec: { readonly terminationGracePeriodSeconds?: number; readonly containers: { args: string[] }[] } };
  };
}

function run(file: string, args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr, error } = spawnSync(file, args, { encoding: "utf8" });
  if (error) throw new Error(`Cannot start ${file}: ${error.message}; install it, see CONTRIBUTING.md`);
  return { status, stdout, stderr };
}

using folder = new Folder();

/** Files of the volumes that the command lines name. */
async function writeVolumes(): Promise<void> {
  const { cert, key } = await (await makeAuthority()).issue({ names: ["a.example.com"] });
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const token = [part({ alg: "ES256", typ: "JWT" }), part({ agent_id: "a", role: "agent", exp: 4_000_000_000 }), "c2lnbmF0dXJl"].join(".");
  const files = {
    "keys/auth-key-public.pem": generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" }).toString(),
    "tls/tls.crt": cert,
    "tls/tls.key": key,
    "admin-tls/tls.crt": cert,
    "admin-tls/tls.key": key,
    "token/token": token,
    "acme/key": "0".repeat(64),
    "policy/policy.yaml": "rules:\n  - allow: all\n",
  };
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(folder.path, dirname(name)), { recursive: true });
    folder.write(name, content);
  }
}

/** Checks a command line as `--check-config` does, but for what only the native engine knows of certificates. */
async function checkCommandLine(args: readonly string[]): Promise<void> {
  const net = { checkServerTls() {}, checkClientTls() {} };
  const values: unknown = valuesOf(args.map((arg) => arg.replace(/(?<=[=:])\/(?=[a-z-]+(?:\/|$))/, `${folder.path}/`)));
  if (args[0] === "proxy") await checkProxyOptions(values as ProxyOptions, { net });
  else if (args[0] === "lb") await checkLoadBalancerOptions(values as LoadBalancerOptions, { net });
  else await checkAgentOptions(values as AgentOptions, { net });
}

await writeVolumes();
const render = (values: string, release = RELEASES[0]!) =>
  run("helm", ["template", release, CHART, "--kube-version", KUBERNETES, "--namespace", "reverse-http", "--values", values]);

/** Checks rendered objects. */
async function check(name: string, rendered: string): Promise<void> {
  const documents = parseAllDocuments(rendered);
  const objects = documents.map((document) => document.toJS() as Rendered | null).filter((object) => object !== null);
  for (const { kind, metadata, spec } of objects) {
    assert.match(metadata.name, /^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$/, `${name}: the name of a ${kind}`);
    if (kind !== "Deployment" || metadata.name.endsWith("memcached")) continue;
    const { terminationGracePeriodSeconds: grace, containers } = spec.template.spec;
    assert.ok(grace! * 1_000 > drainMs(containers[0]!.args), `${name}: ${metadata.name} has less time to stop than it takes`);
    await checkCommandLine(containers[0]!.args).catch((cause) => {
      throw new Error(`${name}: ${metadata.name} does not start: ${cause}`, { cause });
    });
  }
  const builtIn = documents.filter((document) => !CUSTOM_KINDS.includes(String(document.get("kind"))));
  const valid = run("kubernetes-validate", ["--strict", folder.write("rendered.yaml", builtIn.map(String).join("---\n"))]);
  assert.equal(valid.status, 0, `${name}: ${valid.stdout}${valid.stderr}`);
  console.log(`ok   ${name}: ${objects.map(({ kind }) => kind).join(", ")}`);
}

for (const name of readdirSync(VALUES)) {
  const values = join(VALUES, name);
  const linted = run("helm", ["lint", "--strict", "--kube-version", KUBERNETES, CHART, "--values", values]);
  assert.equal(linted.status, 0, `${name}: ${linted.stdout}${linted.stderr}`);
  for (const release of RELEASES) {
    const { status, stdout, stderr } = render(values, release);
    assert.equal(status, 0, `${name}: ${stderr}`);
    await check(name, stdout);
  }
}
const copy = join(folder.path, "kubernetes");
cpSync(KUSTOMIZATIONS, copy, { recursive: true });
folder.write(join("kubernetes", "auth-key-public.pem"), "the operator's key\n");
for (const name of [".", "agent"]) {
  const { status, stdout, stderr } = run("kubectl", ["kustomize", join(copy, name)]);
  assert.equal(status, 0, `${name}: ${stderr}`);
  await check(`kustomization ${name}`, stdout);
}
for (const [text, message] of REFUSED) {
  const { status, stderr } = render(folder.write("values.yaml", text));
  assert.notEqual(status, 0, text);
  assert.match(stderr, message);
  console.log(`ok   refused: ${JSON.stringify(text)}`);
}
