// Plans a reload of the configuration: compares the options in force with the new ones, and says which of them need a restart.
import { createHash } from "node:crypto";
import type { Option, Options, Reload } from "./option.ts";
import { assignValue, type Resolved, valueOf } from "./sources.ts";

/** The options that have changed, by when they take effect. */
export interface ReloadPlan {
  readonly changed: Readonly<Record<Reload | "restart", readonly string[]>>;
  /** What will be in force: the new values of options that can be reloaded, and the others as they are. */
  readonly next: Resolved;
}

/** Plans the change from `running` to `wanted`. */
export function planReload(options: Options, running: Resolved, wanted: Resolved): ReloadPlan {
  const changed: Record<Reload | "restart", string[]> = { "at once": [], "new connections": [], "new tunnels": [], restart: [] };
  const values = structuredClone(running.values);
  const settings = new Map(running.settings);
  for (const [name, { reload }] of Object.entries(options)) {
    const value = valueOf(wanted.values, name);
    if (JSON.stringify(value) === JSON.stringify(valueOf(running.values, name))) continue;
    changed[reload ?? "restart"].push(name);
    if (reload === undefined) continue;
    assignValue(values, name, value);
    settings.set(name, wanted.settings.get(name)!);
  }
  return { changed, next: { values, settings } };
}

/** Describes the options of a plan by when they take effect; empty if there are none. */
export function describePlan({ changed }: ReloadPlan): Partial<Record<"atOnce" | "newConnections" | "newTunnels" | "needRestart", string>> {
  const list = (names: readonly string[]) => names.length === 0 ? undefined : names.join(",");
  return {
    atOnce: list(changed["at once"]),
    newConnections: list(changed["new connections"]),
    newTunnels: list(changed["new tunnels"]),
    needRestart: list(changed.restart),
  };
}

/** Whether nothing has changed. */
export function isUnchanged({ changed }: ReloadPlan): boolean {
  return Object.values(changed).every((names) => names.length === 0);
}

/** A hash of the values in force, 12 hexadecimal digits: equal on programs with the same configuration. Secrets are left out. */
export function hashOf(options: Options, { values }: Resolved): string {
  const known = Object.keys(options).filter((name) => !options[name]!.secret).sort().map((name) => [name, valueOf(values, name) ?? null]);
  return createHash("sha256").update(JSON.stringify(known)).digest("hex").slice(0, 12);
}

/** An option whose value is not the default. */
export interface ChangedOption {
  /** Its name, such as `log.level`. */
  readonly name: string;
  /** As text; `******` for a secret. */
  readonly value: string;
  /** Missing: there is none. */
  readonly default?: string;
  /** Where it was set: `--flag`, `VARIABLE`, or `file:line`. */
  readonly origin: string;
}

/** The options whose values are not the defaults. */
export function changedOptions(options: Options, { settings }: Resolved): ChangedOption[] {
  return [...settings].flatMap(([name, { text, origin }]) => {
    const option = options[name]!;
    const missing = option.default ?? (option.kind === "boolean" ? "false" : "");
    return text === missing ? [] : [{ name, value: hideSecret(text, option), default: option.default, origin }];
  });
}

/** Hides secrets, but not the names of files that hold them. */
export function hideSecret(text: string, { secret }: Option): string {
  return secret && text !== "" && !text.startsWith("file:") ? "******" : text;
}

/** The addresses that options have listeners at, of `running` or `next` alone; empty if all stay. */
export function describePlaces(options: Options, running: Resolved, next: Resolved): Partial<Record<"closes" | "opens", string>> {
  const [before, after] = [placesIn(options, running), placesIn(options, next)];
  const only = (places: Set<string>, others: Set<string>) => [...places].filter((place) => !others.has(place)).join(",") || undefined;
  return { closes: only(before, after), opens: only(after, before) };
}

function placesIn(options: Options, { values }: Resolved): Set<string> {
  const places = Object.entries(options).flatMap(([name, { kind }]) => {
    const value = valueOf(values, name);
    if (value === undefined) return [];
    if (/listen-address$/.test(name) || name === "admin.socket") return [`${name}=${value}`];
    return kind === "records" && Array.isArray(value) ? value.map(({ listen }) => `${name}=${listen}`) : [];
  });
  return new Set(places);
}

/** Whether a change may end open tunnels, because it restricts access. */
export function mayCut(options: Options, changed: ReloadPlan["changed"], wanted: Resolved): boolean {
  if (valueOf(wanted.values, "reload.forbidden") === "keep") return false;
  return Object.entries(changed).some(([when, names]) => when !== "restart" && names.some((name) => options[name]!.cuts));
}
