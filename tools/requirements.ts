// The servers and clients that the tests run, and how to install them. `deno task test` runs this before the build.
import { spawnSync } from "node:child_process";
import { existsSync, globSync, readFileSync } from "node:fs";
import process from "node:process";

interface Requirement {
  /** The program's usual name. */
  readonly name: string;
  /** Package of Debian and Ubuntu. */
  readonly debian: string;
  /** Homebrew formula. Missing if the tests do not use it on macOS. */
  readonly brew?: string;
  /** Command that succeeds if it is installed. Default: `name --version`. */
  readonly probe?: readonly [string, ...string[]];
  /** Glob that matches a file if it is installed. Replaces `probe`. */
  readonly file?: string;
}

const REQUIREMENTS: readonly Requirement[] = [
  { name: "memcached", debian: "memcached", brew: "memcached" },
  { name: "redis-server", debian: "redis-server", brew: "redis" },
  { name: "curl", debian: "curl" },
  { name: "wget", debian: "wget" },
  { name: "git", debian: "git" },
  { name: "mitmproxy", debian: "mitmproxy", file: "/usr/bin/mitmdump" },
  { name: "nginx", debian: "nginx", probe: ["nginx", "-v"] },
  { name: "nginx's stream module", debian: "libnginx-mod-stream", file: "/usr/lib/nginx/modules/ngx_stream_module.so" },
  { name: "haproxy", debian: "haproxy", probe: ["haproxy", "-v"] },
  { name: "squid", debian: "squid", file: "/usr/sbin/squid" },
  { name: "microsocks", debian: "microsocks", file: "/usr/bin/microsocks" },
  { name: "ssh", debian: "openssh-client", probe: ["ssh", "-V"] },
  { name: "sshd", debian: "openssh-server", file: "/usr/sbin/sshd" },
  { name: "openssl", debian: "openssl", probe: ["openssl", "version"] },
  { name: "ps", debian: "procps" },
  { name: "ip", debian: "iproute2", file: "/usr/sbin/ip" },
  { name: "nft", debian: "nftables", file: "/usr/sbin/nft" },
  { name: "socat", debian: "socat", probe: ["socat", "-V"] },
  { name: "strace", debian: "strace" },
  { name: "libfaketime", debian: "libfaketime", file: "/usr/lib/*/faketime/libfaketime.so.1" },
  { name: "go", debian: "golang-go", probe: ["go", "version"] },
  { name: "python3", debian: "python3" },
  { name: "python3 with requests", debian: "python3-requests", probe: ["/usr/bin/python3", "-c", "import requests"] },
  { name: "python3 with PySocks", debian: "python3-socks", probe: ["/usr/bin/python3", "-c", "import socks"] },
  { name: "ncat", debian: "ncat" },
  { name: "pip", debian: "python3-pip", probe: ["python3", "-m", "pip", "--version"] },
  { name: "shellcheck", debian: "shellcheck" },
  { name: "zsh", debian: "zsh" },
  { name: "fish", debian: "fish" },
  { name: "mandoc", debian: "mandoc", probe: ["mandoc", "-l", "/dev/null"] },
  { name: "chromium", debian: "chromium" },
];

const PATH = `${process.env.PATH}:/usr/sbin:/usr/local/go/bin`;
const isLinux = process.platform === "linux";

function isInstalled({ name, probe = [name, "--version"], file }: Requirement): boolean {
  if (file !== undefined) return globSync(file).length > 0;
  const [command, ...args] = probe;
  return spawnSync(command, args, { stdio: "ignore", env: { ...process.env, PATH } }).status === 0;
}

/** Ubuntu has Chromium as a snap only, which root cannot run headless. */
const isUbuntu = () => existsSync("/etc/os-release") && /^ID=ubuntu$/m.test(readFileSync("/etc/os-release", "utf8"));

function missingRequirements(): Requirement[] {
  return REQUIREMENTS
    .filter(({ brew }) => isLinux || brew !== undefined)
    .filter(({ debian }) => debian !== "chromium" || !isUbuntu())
    .filter((each) => !isInstalled(each));
}

/** Names the missing programs and the command that installs them. */
function describe(missing: readonly Requirement[]): string {
  const names = missing.map(({ name }) => name).join(", ");
  const command = isLinux
    ? `sudo apt-get install ${missing.map(({ debian }) => debian).join(" ")} (or your system's packages of the same programs)`
    : `brew install ${missing.map(({ brew }) => brew).join(" ")}`;
  return `The tests need ${names}, which ${missing.length === 1 ? "is" : "are"} not installed: run ${command}`;
}

function install(missing: readonly Requirement[]): void {
  const env = {
    ...process.env,
    DEBIAN_FRONTEND: "noninteractive",
    RUNLEVEL: "1", // the tests start the servers themselves
  };
  const packages = missing.map(({ debian }) => debian);
  console.log(`Installing packages for the tests: ${packages.join(" ")}`);
  for (const args of [["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", ...packages]]) {
    const { status, stdout, stderr } = spawnSync("apt-get", args, { env, encoding: "utf8" });
    if (status !== 0) throw new Error(`Cannot install packages for the tests: apt-get ${args[0]} failed\n${stdout}${stderr}`);
  }
}

/**
 * Installs missing programs, as root on Debian and Ubuntu.
 * @throws {Error} naming the missing programs and the command that installs them
 */
export function requireAll(): void {
  let missing = missingRequirements();
  const canInstall = isLinux && process.getuid?.() === 0 && existsSync("/usr/bin/apt-get");
  if (missing.length > 0 && canInstall) {
    install(missing);
    missing = missingRequirements();
  }
  if (missing.length > 0) throw new Error(describe(missing));
}

if (import.meta.main) {
  try {
    requireAll();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
