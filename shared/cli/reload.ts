// Reloads the configuration of a running service: reads it, plans the change, checks it, and applies what needs no restart. What cannot be
// used changes nothing.
import type { Option, Options } from "../config/option.ts";
import { changedOptions, describePlaces, describePlan, hashOf, isUnchanged, mayCut, planReload } from "../config/plan.ts";
import type { Resolved } from "../config/sources.ts";
import { messageOf } from "../log/error_message.ts";
import type { LogFields, Logger } from "../log/logger.ts";
import type { ConfigurationState } from "../service/configuration.ts";

export interface ReloaderOptions {
  /** The definitions of the service's options. */
  readonly options: Options;
  /** The configuration in force. */
  readonly running: Resolved;
  /** Updated at each reload. */
  readonly state: ConfigurationState;
  /**
   * Reads the configuration again.
   * @throws {ConfigError} naming file and line
   */
  readonly read: () => Resolved;
  /**
   * Checks the files and other things that the values refer to.
   * @throws {ConfigError}
   */
  readonly check: (values: Resolved["values"]) => Promise<void>;
  /**
   * Applies the values of options that can be reloaded; the others are those in force. Resolves with the numbers of ended
   * tunnels and connections, for the log. If it rejects, nothing has changed.
   */
  readonly apply: (values: Resolved["values"]) => Promise<LogFields>;
  /** Reads the files again that the options name. */
  readonly reloadFiles: () => Promise<void>;
  /** Sends a reload to the process that has taken over, if one has. Default: none can. */
  readonly passOn?: (pid: number | undefined) => void;
  readonly log: Logger;
}

export class Reloader {
  readonly #given: ReloaderOptions;
  #running: Resolved;
  #current: Promise<void> = Promise.resolve();
  #next?: Promise<void>;

  constructor(given: ReloaderOptions) {
    this.#given = given;
    this.#running = given.running;
    given.state.hash = hashOf(given.options, given.running);
  }

  /** Reloads, and logs the changes. Calls during a reload become one reload that follows it. Never rejects. */
  reload(): Promise<void> {
    return this.#next ??= this.#current.then(() => {
      this.#next = undefined;
      const { state: { turns } } = this.#given;
      return this.#current = turns ? turns.run(() => this.#reload()) : this.#reload();
    });
  }

  async #reload(): Promise<void> {
    const { options, read, check, apply, reloadFiles, passOn, log, state } = this.#given;
    try {
      if (state.successor) return passOn?.(state.successor.pid);
      const wanted = read();
      const plan = planReload(options, this.#running, wanted);
      const places = describePlaces(options, this.#running, plan.next);
      let ended: LogFields = {};
      if (!isUnchanged(plan)) {
        await check(wanted.values);
        ended = await apply(plan.next.values);
        this.#running = plan.next;
        Object.assign(state, { hash: hashOf(options, plan.next), changed: changedOptions(options, plan.next) });
      }
      await reloadFiles();
      state.isReloaded = true;
      if (isUnchanged(plan)) return log.info("configuration unchanged", { hash: state.hash });
      log.info("configuration reloaded", { ...describePlan(plan), ...places, ...ended, hash: state.hash });
    } catch (error) {
      state.isReloaded = false;
      log.error("reload failed; the configuration in force stays", { reason: messageOf(error), hash: state.hash });
    }
  }
}

/** The changes of a reload: one option per line, with the time at which it takes effect. */
export function reportOfReload(options: Options, running: Resolved, wanted: Resolved): string {
  const { changed } = planReload(options, running, wanted);
  const lines = Object.entries(changed).flatMap(([when, names]) =>
    names.map((name) => `${name}: ${when}${reasonOf(options[name]!, when)}\n`)
  );
  if (lines.length === 0) return "Nothing changes\n";
  const { closes, opens } = describePlaces(options, running, wanted);
  const effects = [
    closes === undefined ? "" : `closes: ${closes}\n`,
    opens === undefined ? "" : `opens: ${opens}\n`,
    mayCut(options, changed, wanted) ? "cuts: open tunnels and connections of agents that it forbids\n" : "",
  ];
  return lines.join("") + effects.join("");
}

function reasonOf({ restart }: Option, when: string): string {
  return when === "restart" && restart !== undefined ? `, because ${restart}` : "";
}
