// Renders property lists of launchd. Writes no files.

/** A service as its property list has it. */
export interface Job {
  readonly label: string;
  readonly role: "proxy" | "agent" | "lb";
  /** Path of the executable. */
  readonly executable: string;
  /** Path of the configuration file. */
  readonly config: string;
  /** File for standard error. */
  readonly log: string;
  /** User of the service. Default: the one whose domain it is. */
  readonly user?: string;
  /** A comment. */
  readonly origin: string;
}

/** Renders a property list (launchd.plist(5)). */
export function renderJob({ label, role, executable, config, log, user, origin }: Job): string {
  const pairs: [string, string][] = [
    ["Label", text(label)],
    ["ProgramArguments", `<array>\n${[executable, role, "--config", config].map((word) => `    ${text(word)}`).join("\n")}\n  </array>`],
    ...user === undefined ? [] : [["UserName", text(user)] as [string, string]],
    ["RunAtLoad", "<true/>"],
    ["KeepAlive", "<true/>"],
    // a configuration that cannot be used would be tried again at once
    ["ThrottleInterval", "<integer>10</integer>"],
    ["ExitTimeOut", "<integer>60</integer>"],
    ["StandardErrorPath", text(log)],
  ];
  return `<?xml version="1.0" encoding="UTF-8"?>
<!-- ${origin} -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
${pairs.map(([key, value]) => `  <key>${key}</key>\n  ${value}`).join("\n")}
</dict>
</plist>
`;
}

function text(value: string): string {
  return `<string>${value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")}</string>`;
}
