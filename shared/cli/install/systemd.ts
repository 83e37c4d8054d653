// Renders units of systemd. Writes no files.

/** A file that an option names, and only root can read. */
export interface SecretFile {
  /** Without dashes. */
  readonly option: string;
  readonly file: string;
  /** Whether the option's value is written `file:NAME`. */
  readonly isMarked: boolean;
}

/** A service as its unit has it. */
export interface Unit {
  readonly role: "proxy" | "agent" | "lb";
  /** For the description. */
  readonly name: string;
  /** Path of the executable. */
  readonly executable: string;
  /** Path of the configuration file. */
  readonly config: string;
  /** Files that the service cannot read itself. Default: none. */
  readonly secrets?: readonly SecretFile[];
  /** User of the service. Default: a dynamic one; `undefined` and `isOfUser`: the user whose manager it is. */
  readonly user?: string;
  /** Whether it is a unit of a user's service manager. Default `false`. */
  readonly isOfUser?: boolean;
  /** Directory below the state directory of the service manager. */
  readonly state: string;
  /** First line, a comment. */
  readonly origin: string;
}

/**
 * Renders a unit. The configuration, which may contain a token, is readable by root only: systemd hands it over as a credential
 * (systemd.exec(5), version 247), and so are other secret files.
 */
export function renderUnit(unit: Unit): string {
  const { role, name, isOfUser = false } = unit;
  return [
    `# ${unit.origin}`,
    "[Unit]",
    `Description=reverse-http ${role} ${name}`,
    "Documentation=man:reverse-http(1)",
    ...isOfUser ? [] : ["After=network-online.target nss-lookup.target", "Wants=network-online.target"],
    "StartLimitIntervalSec=0",
    "",
    "[Service]",
    "Type=notify",
    ...isOfUser ? ownFiles(unit) : handedOver(unit),
    "# reloads the configuration, certificates, keys and token files; after an upgrade, a new process takes over; tunnels continue",
    "ExecReload=/bin/kill -HUP $MAINPID",
    `StateDirectory=${unit.state}`,
    "StateDirectoryMode=0700",
    "# for a process that takes over",
    "RuntimeDirectory=%N",
    "RuntimeDirectoryMode=0700",
    "Environment=REVERSE_HTTP_HANDOVER_SOCKET=%t/%N/handover.sock",
    "",
    "# restart always, except for exit code 2: an invalid configuration",
    "Restart=always",
    "RestartSec=2",
    "RestartPreventExitStatus=2",
    "# the service reports every few seconds that it runs, and is killed and restarted when it stops reporting",
    "WatchdogSec=30",
    "# longer than the default --drain.timeout; with a longer one the service requests more time",
    "TimeoutStopSec=60",
    ...isOfUser ? [] : [...SANDBOX, ...role === "agent" ? ["CapabilityBoundingSet="] : LOW_PORTS],
    "UMask=0077",
    "",
    "[Install]",
    `WantedBy=${isOfUser ? "default" : "multi-user"}.target`,
    "",
  ].join("\n");
}

function handedOver({ role, executable, config, secrets = [], user }: Unit): string[] {
  const at = "${CREDENTIALS_DIRECTORY}";
  const flags = secrets.map(({ option, isMarked }) => ` --${option}=${isMarked ? "file:" : ""}${at}/${option}`);
  return [
    `LoadCredential=config.yaml:${escape(config)}`,
    ...secrets.map(({ option, file }) => `LoadCredential=${option}:${escape(file)}`),
    `ExecStart=${escape(executable)} ${role} --config=${at}/config.yaml${flags.join("")}`,
    ...user === undefined ? ["DynamicUser=yes"] : [`User=${user}`, `Group=${user}`],
  ];
}

function ownFiles({ role, executable, config }: Unit): string[] {
  return [`ExecStart=${escape(executable)} ${role} --config=${escape(config)}`];
}

/** A percent sign begins a specifier, except that of a template's instance. */
function escape(path: string): string {
  return path.replace(/%(?!i\b)/g, "%%").replaceAll(" ", "\\x20");
}

/** Ports below 1024. */
const LOW_PORTS = ["AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"];

/** As the units of the packages. */
const SANDBOX = `LimitNOFILE=1048576

NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# no MemoryDenyWriteExecute: the runtime has a JIT compiler`.split("\n");
