// The files in deploy/ must match the program: command lines, timeouts, ports, files. The system tests run them.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parse, parseAllDocuments } from "yaml";
import { SERVICES } from "../../services.ts";
import { readConfig } from "../../shared/config/file.ts";
import { parseValue } from "../../shared/config/option.ts";
import { resolve } from "../../shared/config/sources.ts";
import { drainMs, valuesOf } from "../../testing/command_lines.ts";
import { COMPOSE_FILES, readCompose } from "../../testing/compose.ts";
import { Folder, ROOT } from "../../testing/programs.ts";

const KUBERNETES = join(ROOT, "deploy", "kubernetes");

/** The services of the Go original's compose files with their published ports; here memcached publishes none. */
const ORIGINAL: Record<(typeof COMPOSE_FILES)[number], string[]> = {
  "noauth": ["proxy", "agent-4711", "agent-4712"],
  "jwt": ["proxy", "agent-4711", "agent-4712"],
  "ha": ["memcached-server", "proxy-lb", "proxy-1", "proxy-2", "agent-4711", "agent-4712", "lb-1", "lb-2", "http-proxy"],
  "ha-tls": ["memcached-server", "proxy-lb", "proxy-1", "proxy-2", "agent-4711", "agent-4712", "lb-1", "lb-2", "http-proxy"],
};

describe("compose files", () => {
  for (const name of COMPOSE_FILES) {
    const { services } = readCompose(name);
    const ours = Object.entries(services).filter(([, { image }]) => image.includes("/reverse-http:"));

    it(`of ${name} have the services and the port of the Go original's`, () => {
      assert.deepEqual(Object.keys(services).sort(), ORIGINAL[name].sort());
      assert.deepEqual(Object.values(services).flatMap(({ ports = [] }) => ports).sort(), [
        "3128:3128/tcp",
        "4242:4242/tcp",
        "4242:4242/udp",
      ]);
    });

    it(`of ${name} have valid command lines, and mounts for all files in them`, () => {
      assert.equal(ours.length, ORIGINAL[name].filter((service) => /^(proxy(-\d)?|agent-.*|lb-\d)$/.test(service)).length);
      for (const [service, { command, volumes = [] }] of ours) {
        valuesOf(command!);
        for (const [, file] of command!.join("\n").matchAll(/[=:](\/\S+)$/gm)) {
          assert.ok(volumes.some((volume) => file!.startsWith(`${volume.split(":")[1]}/`)), `${service}: ${file} is not mounted`);
        }
      }
    });

    it(`of ${name} give every service more time to stop than it takes`, () => {
      for (const [service, { command, stop_grace_period: grace }] of ours) {
        assert.ok(Number(parseValue({ kind: "duration", description: "" }, grace!)) > drainMs(command!), service);
      }
    });
  }
});

describe("the examples in the packages", () => {
  const folder = join(ROOT, "deploy", "packages", "examples");

  it("are configurations of a proxy and an agent, and are packaged", () => {
    const packaged = readFileSync(join(ROOT, "deploy", "packages", "nfpm.yaml"), "utf8");
    const known = { "agent.yaml": SERVICES.agent, "proxy.yaml": SERVICES.proxy };
    assert.deepEqual(readdirSync(folder).sort(), Object.keys(known));
    for (const [name, options] of Object.entries(known)) {
      // the join string is not a real one
      const text = readFileSync(join(folder, name), "utf8").replace(/^join: .*$/m, "");
      resolve(options, { flags: new Map(), env: {}, file: readConfig(options, { name, text }) });
      assert.ok(packaged.includes(`src: deploy/packages/examples/${name}\n`), name);
    }
  });
});

/** The part of a Kubernetes object that these tests read. */
interface KubernetesObject {
  kind: string;
  metadata: { name: string; labels?: Record<string, string> };
  // deno-lint-ignore no-explicit-any -- any kind there is; what is missing makes the test fail
  spec: any;
}

const manifests = readdirSync(KUBERNETES).filter((name) => name.endsWith(".yaml"));
const objects = manifests.flatMap((name) =>
  parseAllDocuments(readFileSync(join(KUBERNETES, name), "utf8"), { merge: true }).map((document) => {
    assert.deepEqual(document.errors, [], name);
    return document.toJS() as KubernetesObject;
  })
);
const ofKind = (kind: string) => objects.filter((object) => object.kind === kind);
const deployments = ofKind("Deployment");
const template = (deployment: KubernetesObject) => deployment.spec.template;
const container = (deployment: KubernetesObject) => template(deployment).spec.containers[0];
const own = deployments.filter((deployment) => /\/reverse-http$/.test(container(deployment).image));

const selects = (selector: Record<string, string>, labels: Record<string, string> | undefined) =>
  Object.entries(selector).every(([name, value]) => labels?.[name] === value);
const podsOf = (selector: Record<string, string>) =>
  deployments.filter((deployment) => selects(selector, template(deployment).metadata.labels));

const withoutKubectl = spawnSync("kubectl", ["version", "--client"]).error ? "there is no kubectl here" : false;

describe("Kubernetes manifests", () => {
  it("are all in the kustomization or mentioned there", () => {
    const text = readFileSync(join(KUBERNETES, "kustomization.yaml"), "utf8");
    for (const name of manifests) if (name !== "kustomization.yaml") assert.match(text, new RegExp(`^ +(# )?- ${name}$`, "m"));
  });

  it("are accepted by kustomize", { skip: withoutKubectl }, () => {
    using folder = new Folder();
    cpSync(KUBERNETES, folder.path, { recursive: true });
    folder.write("auth-key-public.pem", "a key\n");
    const { status, stdout, stderr } = spawnSync("kubectl", ["kustomize", folder.path], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    const made = parseAllDocuments(stdout).map((document) => document.toJS() as KubernetesObject);
    assert.equal(made.length, objects.length - 2 + 1); // without the kustomization and the monitor, with the keys
    for (const image of own.map(container).map(({ image }) => `${image}:latest`)) assert.ok(stdout.includes(image), image);
  });

  it("have valid command lines", () => {
    assert.deepEqual(own.map((deployment) => valuesOf(container(deployment).args) && container(deployment).args[0]).sort(), [
      "lb",
      "proxy",
    ]);
  });

  it("give pods more time to stop than they take", () => {
    for (const deployment of own) {
      assert.ok(template(deployment).spec.terminationGracePeriodSeconds * 1000 > drainMs(container(deployment).args));
    }
  });

  it("mount the files in command lines read-only, from existing sources", () => {
    const { configMapGenerator } = objects.find(({ kind }) => kind === "Kustomization") as unknown as {
      configMapGenerator: { name: string }[];
    };
    for (const deployment of own) {
      const { args, volumeMounts } = container(deployment);
      const { volumes } = template(deployment).spec;
      for (const [, file] of (args as string[]).join("\n").matchAll(/=(\/\S+)$/gm)) {
        const mount = volumeMounts.find(({ mountPath }: { mountPath: string }) => file!.startsWith(`${mountPath}/`));
        assert.equal(mount?.readOnly, true, `${file} is not mounted read-only`);
        const { configMap, secret } = volumes.find(({ name }: { name: string }) => name === mount.name);
        assert.ok(secret?.secretName ?? configMapGenerator.some(({ name }) => name === configMap.name), `${file} comes from nowhere`);
      }
    }
  });

  it("have services, budgets and policies that match pods, and ports that match containers", () => {
    for (const { metadata, spec } of ofKind("Service")) {
      const pods = podsOf(spec.selector);
      assert.equal(pods.length, 1, metadata.name);
      for (const { port, protocol = "TCP", targetPort = port } of spec.ports) {
        const found = container(pods[0]!).ports.find((has: { name: string; containerPort: number }) =>
          has.name === targetPort || has.containerPort === targetPort
        );
        assert.equal(found?.protocol ?? "TCP", protocol, metadata.name);
        assert.equal(found.containerPort, port, metadata.name);
      }
    }
    for (const { metadata, spec } of ofKind("PodDisruptionBudget")) {
      assert.equal(podsOf(spec.selector.matchLabels).length, 1, metadata.name);
    }
    for (const { metadata, spec } of ofKind("NetworkPolicy")) {
      const [pods] = podsOf(spec.podSelector.matchLabels);
      for (const { port, protocol = "TCP" } of spec.ingress.flatMap(({ ports }: { ports: unknown[] }) => ports)) {
        const found = container(pods!).ports.filter(({ containerPort }: { containerPort: number }) => containerPort === port);
        const protocols = found.map((has: { protocol?: string }) => has.protocol ?? "TCP");
        assert.ok(protocols.includes(protocol), `${metadata.name}: ${protocol} ${port}`);
      }
    }
    const [monitor] = ofKind("ServiceMonitor");
    const watched = ofKind("Service").filter(({ metadata }) => selects(monitor!.spec.selector.matchLabels, metadata.labels));
    assert.equal(watched.length, own.length);
    for (const { spec } of watched) assert.ok(spec.ports.some(({ name }: { name: string }) => name === monitor!.spec.endpoints[0].port));
  });

  it("listen on their declared ports, and are probed on the admin port", () => {
    for (const deployment of own) {
      const { args, ports, startupProbe, livenessProbe, readinessProbe } = container(deployment);
      const { agentServer, httpProxy, admin } = valuesOf(args);
      for (const { name, containerPort } of ports) {
        const servers = { "agents": agentServer, "agents-tcp": agentServer, "clients": httpProxy, admin };
        const address = servers[name as keyof typeof servers]!.listenAddress as string;
        assert.equal(Number(address.split(":").at(-1)), containerPort, name);
      }
      // from other pods and the node
      assert.match(admin!.listenAddress as string, /^0\.0\.0\.0:/);
      for (const probe of [startupProbe, livenessProbe, readinessProbe]) {
        assert.equal(probe.httpGet.port, "admin");
        assert.match(probe.httpGet.path, /^\/(healthz|readyz\?.*)$/);
      }
    }
  });

  it("run without root and with a read-only file system", () => {
    for (const deployment of deployments) {
      const { runAsNonRoot, runAsUser, seccompProfile } = template(deployment).spec.securityContext;
      assert.deepEqual([runAsNonRoot, runAsUser > 0, seccompProfile.type], [true, true, "RuntimeDefault"]);
      assert.deepEqual(container(deployment).securityContext, {
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ["ALL"] },
      });
    }
  });
});

describe("files for an agent alone", () => {
  const read = (...path: string[]) => readFileSync(join(ROOT, "deploy", ...path), "utf8");

  it("have valid command lines, and more time to stop than it takes", () => {
    const { services } = parse(read("compose", "agent.yaml")) as { services: { agent: { command: string[]; stop_grace_period: string } } };
    const { command, stop_grace_period: grace } = services.agent;
    assert.ok(Number(parseValue({ kind: "duration", description: "" }, grace)) > drainMs(command));
    const { spec } = parse(read("kubernetes", "agent", "agent.yaml"), { merge: true }) as KubernetesObject;
    const pod = spec.template.spec;
    assert.ok(pod.terminationGracePeriodSeconds * 1_000 > drainMs(pod.containers[0].args));
  });

  it("configure a virtual machine with options that exist, and the package's files", () => {
    const userData = read("cloud-init", "agent.yaml");
    assert.ok(userData.startsWith("#cloud-config\n"));
    const files = (parse(userData) as { write_files: { path: string; content: string }[] }).write_files;
    const units = read("systemd", "reverse-http-agent.service");
    assert.deepEqual(files.map(({ path }) => path), ["/etc/reverse-http/config.yaml", "/etc/default/reverse-http-agent"]);
    for (const { path } of files) assert.ok(units.includes(path), path);
    using folder = new Folder();
    const { agentClient, auth } = valuesOf(["agent", "--config", folder.write("config.yaml", files[0]!.content)]);
    assert.deepEqual([agentClient!.serverAddress, auth!.type], [["proxy.example.com:4242"], "jwt"]);
    assert.match(files[1]!.content, /^REVERSE_HTTP_AUTH_JWT_TOKEN=/);
    const { version } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));
    assert.ok(userData.includes(`/v${version}/reverse-http_${version}_linux_`));
  });
});

describe("alert rules and dashboard", () => {
  it("use metrics that exist", () => {
    const documented = readFileSync(join(ROOT, "docs", "metrics.md"), "utf8");
    for (const name of ["alerts.yaml", "alerts_test.yaml", "grafana.json"]) {
      const names = readFileSync(join(ROOT, "deploy", "monitoring", name), "utf8").matchAll(/\breverse_http_\w+?(?=_bucket\b|\W)/g);
      for (const [metric] of names) assert.match(documented, new RegExp(`\`${metric}[\`{]`), `${name}: ${metric}`);
    }
  });

  it("are tested: each alert fires in a test", () => {
    const rules = parse(readFileSync(join(ROOT, "deploy", "monitoring", "alerts.yaml"), "utf8")) as {
      groups: { rules: { alert: string }[] }[];
    };
    const { tests } = parse(readFileSync(join(ROOT, "deploy", "monitoring", "alerts_test.yaml"), "utf8")) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts: unknown[] }[] }[];
    };
    const fired = tests.flatMap(({ alert_rule_test: alerts }) => alerts).filter(({ exp_alerts: alerts }) => alerts.length > 0);
    const names = rules.groups.flatMap(({ rules }) => rules.map(({ alert }) => alert));
    assert.deepEqual([...new Set(fired.map(({ alertname }) => alertname))].sort(), names.sort());
  });
});
