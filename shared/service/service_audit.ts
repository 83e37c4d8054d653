// The audit log of a service, which its options name.
import { ConfigError } from "../config/option.ts";
import { describeWriteError } from "../files/read.ts";
import { messageOf } from "../log/error_message.ts";
import { AuditLog } from "./audit.ts";
import type { Change } from "./change.ts";
import type { ServiceContext } from "./context.ts";
import type { ServiceHandover } from "./service_handover.ts";

/** Values of the options `audit.*`. */
interface AuditOptions {
  readonly file?: string;
  readonly strict: boolean;
}

type CountAudit = (outcome: "written" | "lost", records: number) => void;

/** The audit log of a service. */
export class ServiceAudit {
  readonly #service: ServiceContext;
  readonly #handover: ServiceHandover;
  #log?: AuditLog;
  #count?: CountAudit;

  constructor(service: ServiceContext, handover: ServiceHandover) {
    this.#service = service;
    this.#handover = handover;
  }

  /** That in use. */
  get log(): AuditLog | undefined {
    return this.#log;
  }

  /**
   * The audit log that the options name, `undefined` for none. What is opened later is closed before it.
   * @throws {ConfigError} if the file cannot be read and written
   */
  async open(options: AuditOptions): Promise<AuditLog | undefined> {
    const service = this.#service;
    this.#count = service.metrics.outcomes("reverse_http_audit_records_total", "Records for the audit log: written or lost.");
    service.defer(() => this.#log?.close());
    service.onReload(() => this.#log?.reopen());
    return this.#log = await this.#open(options, this.#count);
  }

  /**
   * Prepares another audit log; `use` is called with it. Tunnels that are open are recorded in it, too.
   * @throws {ConfigError} as {@link open}
   */
  async prepare(change: Change, options: AuditOptions, use: (audit: AuditLog | undefined) => void): Promise<void> {
    const next = await this.#open(options, this.#count!, this.#log);
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      const previous = this.#log;
      this.#log = next;
      if (previous && next) previous.continueIn(next);
      use(next);
      previous?.close().catch((error) => this.#service.log.error("audit log cannot be closed", { reason: messageOf(error) }));
    });
  }

  async #open({ file, strict }: AuditOptions, count: CountAudit, previous?: AuditLog): Promise<AuditLog | undefined> {
    if (file === undefined) {
      if (strict) throw new ConfigError("Cannot use --audit.strict without --audit.file: there is nothing to write to");
      return undefined;
    }
    const { name: service, log, worker } = this.#service;
    const hasPredecessor = this.#handover.predecessor !== undefined;
    try {
      return await AuditLog.open({ file, strict, service, log, count, hasPredecessor, worker, previous });
    } catch (error) {
      throw new ConfigError(`Cannot use --audit.file ${file}: ${describeWriteError(error)}`, { cause: error });
    }
  }
}
