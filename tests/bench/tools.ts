// Other tunnelling tools that the bench compares with: how each forwards one port of the proxy's side to the origin, with encryption. The bench
// takes their executables; it downloads nothing.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";

export type ToolName = "ssh" | "frp" | "chisel" | "rathole";

export interface ToolSubject {
  readonly kind: "tool";
  readonly name: string;
  readonly tool: ToolName;
  /** The executable, or the folder of both. */
  readonly path: string;
}

/** Commands of both ends. */
interface Ends {
  readonly server: readonly string[];
  readonly client: readonly string[];
}

export interface ToolAddresses {
  /** Where the client finds the server. */
  readonly server: string;
  /** The port that is forwarded. */
  readonly entrance: string;
  readonly origin: string;
}

interface Context extends ToolAddresses {
  readonly path: string;
  /** The port is one of UDP. */
  readonly udp: boolean;
  /** Writes a file and returns its path. */
  readonly write: (name: string, text: string) => string;
}

interface Tool {
  /** Name in tables. */
  readonly title: string;
  /** Prints the version. */
  readonly version: (path: string) => readonly string[];
  readonly ends: (context: Context) => Ends;
  /** Whether it forwards UDP. Default `false`. */
  readonly hasUdp?: boolean;
}

const CIPHER = "aes128-gcm@openssh.com";
/** Where sshd, started without its service, wants an empty folder. */
const SSHD_FOLDER = "/run/sshd";

export const TOOLS: Readonly<Record<ToolName, Tool>> = {
  ssh: {
    title: "ssh -R",
    version: (path) => [join(path, "bin", "ssh"), "-V"],
    ends: ({ path, server, entrance, origin, write }) => {
      mkdirSync(SSHD_FOLDER, { recursive: true });
      const [host, port] = split(server);
      const hostKey = makeKey(write("host_key", ""));
      const userKey = makeKey(write("user_key", ""));
      const config = write(
        "sshd_config",
        [
          `ListenAddress ${host}`,
          `Port ${port}`,
          `HostKey ${hostKey}`,
          `AuthorizedKeysFile ${userKey}.pub`,
          "PermitRootLogin prohibit-password",
          "StrictModes no",
          "UsePAM no",
          "PidFile none",
          "GatewayPorts clientspecified",
        ].join("\n") + "\n",
      );
      return {
        server: [join(path, "sbin", "sshd"), "-D", "-e", "-f", config],
        client: [
          ...[join(path, "bin", "ssh"), "-N", "-F", "none", "-i", userKey, "-p", port],
          ...["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes", `Ciphers=${CIPHER}`]
            .flatMap((option) => ["-o", option]),
          ...["-R", `${entrance}:${origin}`, `root@${host}`],
        ],
      };
    },
  },
  frp: {
    title: "frp",
    version: (path) => [join(path, "frps"), "--version"],
    hasUdp: true,
    ends: ({ path, server, entrance, origin, udp, write }) => {
      const [[host, port], [, remotePort], [originHost, originPort]] = [split(server), split(entrance), split(origin)];
      const frps = write("frps.toml", `bindAddr = "${host}"\nproxyBindAddr = "${host}"\nbindPort = ${port}\n`);
      const frpc = write(
        "frpc.toml",
        `serverAddr = "${host}"\nserverPort = ${port}\n[[proxies]]\nname = "origin"\ntype = "${udp ? "udp" : "tcp"}"\n` +
          `localIP = "${originHost}"\nlocalPort = ${originPort}\nremotePort = ${remotePort}\n`,
      );
      return { server: [join(path, "frps"), "-c", frps], client: [join(path, "frpc"), "-c", frpc] };
    },
  },
  chisel: {
    title: "chisel",
    version: (path) => [path, "--version"],
    ends: ({ path, server, entrance, origin }) => {
      const [host, port] = split(server);
      return {
        server: [path, "server", "--reverse", "--host", host, "--port", port],
        client: [path, "client", `http://${server}`, `R:${entrance}:${origin}`],
      };
    },
  },
  rathole: {
    title: "rathole",
    version: (path) => [path, "--version"],
    ends: ({ path, server, entrance, origin, write }) => {
      const keys = spawnSync(path, ["--genkey"], { encoding: "utf8" }).stdout;
      const key = (kind: string) => new RegExp(`${kind} Key:\\s*(\\S+)`).exec(keys)?.[1];
      const noise = (end: string, key: string) => `[${end}.transport]\ntype = "noise"\n[${end}.transport.noise]\n${key}\n`;
      const serverFile = write(
        "rathole_server.toml",
        `[server]\nbind_addr = "${server}"\ndefault_token = "bench"\n${noise("server", `local_private_key = "${key("Private")}"`)}` +
          `[server.services.origin]\nbind_addr = "${entrance}"\n`,
      );
      const clientFile = write(
        "rathole_client.toml",
        `[client]\nremote_addr = "${server}"\ndefault_token = "bench"\n${noise("client", `remote_public_key = "${key("Public")}"`)}` +
          `[client.services.origin]\nlocal_addr = "${origin}"\n`,
      );
      return { server: [path, "--server", serverFile], client: [path, "--client", clientFile] };
    },
  },
};

/** Why the tool cannot be used. */
export function problemOf({ tool, path }: ToolSubject): string | undefined {
  const missing = [TOOLS[tool].version(path)[0]!].find((file) => !existsSync(file));
  return missing === undefined ? undefined : `Cannot use --${tool}: there is no ${missing}`;
}

function makeKey(file: string): string {
  const made = spawnSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", file], { input: "y\n", encoding: "utf8" });
  if (made.status !== 0) throw new Error(`Cannot make a key: ${made.error?.message ?? made.stderr}`);
  return file;
}

function split(address: string): [host: string, port: string] {
  const [host, port] = address.split(":");
  return [host!, port!];
}
