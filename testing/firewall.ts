// A machine behind a router with a firewall: two network namespaces, whose packet filters (nftables) tests change. Needs root, Linux, iproute2
// and nftables. The kernel removes everything when the processes that hold the namespaces end, at the latest with the test.
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import process from "node:process";

/** What the firewall does with UDP: the router drops it, or rejects it by ICMP, or the machine itself refuses to send it (EPERM). */
export type UdpFilter = "passed" | "dropped" | "rejected" | "forbidden";

/** `skip` of tests that need the firewall. */
export const withFirewall = process.platform === "linux" && process.getuid?.() === 0
  ? false
  : "only root, on Linux, can make network namespaces";

const RULES: Readonly<Record<UdpFilter, { router: string; machine: string }>> = {
  passed: { router: "accept", machine: "accept" },
  dropped: { router: "meta l4proto udp drop", machine: "accept" },
  rejected: { router: "meta l4proto udp reject", machine: "accept" },
  forbidden: { router: "accept", machine: "meta l4proto udp drop" },
};

/** A process that holds a network namespace until its input ends. */
type Namespace = ChildProcessWithoutNullStreams;

/** `await using` removes it. */
export class Firewall implements AsyncDisposable {
  private constructor(
    /** This machine's address, as the machine behind the router reaches it. */
    readonly address: string,
    readonly router: Namespace,
    readonly machine: Namespace,
  ) {}

  static async start(): Promise<Firewall> {
    const [router, machine] = [await openNamespace(), await openNamespace()];
    // of the addresses that RFC 2544 reserves for benchmarks
    const [high, low] = [18 + Math.floor(Math.random() * 2), 8 * Math.floor(Math.random() * 32)];
    const net = `198.${high}.${Math.floor(Math.random() * 256)}`;
    const at = (offset: number) => `${net}.${low + offset}`;
    const link = `rh${randomBytes(4).toString("hex")}`;
    const firewall = new Firewall(at(1), router, machine);
    try {
      run([], `ip link add ${link} type veth peer name near netns ${router.pid}`);
      run(enter(router), `ip link add far type veth peer name eth0 netns ${machine.pid}`);
      const interfaces: [prefix: string[], name: string, address: string][] = [
        [[], link, at(1)],
        [enter(router), "near", at(2)],
        [enter(router), "far", at(5)],
        [enter(machine), "eth0", at(6)],
      ];
      for (const [prefix, name, address] of interfaces) {
        run(prefix, `ip address add ${address}/30 dev ${name}`);
        run(prefix, `ip link set ${name} up`);
      }
      run(enter(machine), "ip link set lo up");
      run(enter(machine), `ip route add default via ${at(5)}`);
      run([], `ip route add ${at(4)}/30 via ${at(2)}`);
      run([...enter(router), "sh", "-c"], ["echo 1 > /proc/sys/net/ipv4/ip_forward"]);
      firewall.filterUdp("passed");
      return firewall;
    } catch (error) {
      await firewall[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The command line that runs a program behind the router. */
  command(file: string, args: readonly string[]): [file: string, args: string[]] {
    const [nsenter, ...words] = enter(this.machine);
    return [`/usr/bin/${nsenter!}`, [...words, file, ...args]];
  }

  /** Replaces the filters; takes effect for the next packet. */
  filterUdp(what: UdpFilter): void {
    const { router, machine } = RULES[what];
    setRules(this.router, "forward", router);
    setRules(this.machine, "output", machine);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.router, this.machine].map(async (namespace) => {
      const ended = once(namespace, "exit");
      namespace.stdin.end();
      await ended;
    }));
  }
}

async function openNamespace(): Promise<Namespace> {
  const keeper = spawn("unshare", ["--net", "sh", "-c", "echo && exec cat"]);
  const failed = once(keeper, "exit").then(() => Promise.reject(new Error("Cannot make a network namespace")));
  failed.catch(() => {}); // it ends some day
  await Promise.race([once(keeper.stdout, "data"), failed]);
  return keeper;
}

function enter({ pid }: Namespace): string[] {
  return ["nsenter", `--net=/proc/${pid}/ns/net`];
}

/** One transaction, so that no packet meets half of it. */
function setRules(namespace: Namespace, hook: "forward" | "output", rule: string): void {
  const chain = `chain ${hook} {\ntype filter hook ${hook} priority 0\n${rule}\n}`;
  run([...enter(namespace), "nft", "-f", "-"], [], `table inet test\ndelete table inet test\ntable inet test {\n${chain}\n}\n`);
}

function run(prefix: readonly string[], command: string | readonly string[], input?: string): void {
  const [file, ...args] = [...prefix, ...typeof command === "string" ? command.split(" ") : command];
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
  const { status, stderr, error } = spawnSync(file!, args, { encoding: "utf8", input, env });
  if (status !== 0) throw new Error(`Cannot set up the firewall: ${file} ${args.join(" ")}: ${error?.message ?? stderr.trim()}`);
}
