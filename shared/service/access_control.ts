// Who may use a service: the authenticator and the policy that its options name.
import type { Authenticator } from "../auth/authenticator.ts";
import { ReplaceableAuthenticator } from "../auth/replaceable.ts";
import { type AuthOptions, createAuthenticator } from "../auth/scheme.ts";
import { openPolicy, type Policy } from "../policy/policy.ts";
import type { Change } from "./change.ts";
import type { ServiceContext } from "./context.ts";

/** The authenticator and the policy of a service. */
export class AccessControl {
  readonly #service: ServiceContext;
  #authenticator?: Authenticator;
  /** That of the options. */
  #ownAuthenticator?: ReplaceableAuthenticator;
  /** Those that were replaced, and whose identities may still be used. */
  readonly #retired: Authenticator[] = [];
  #policy?: Policy;

  constructor(service: ServiceContext) {
    this.#service = service;
  }

  /** Revokes tokens; `undefined` if the authenticator has none. */
  get revoke(): Authenticator["revoke"] {
    return this.#authenticator?.revoke?.bind(this.#authenticator);
  }

  /** Ends sessions by logout tokens; `undefined` if the authenticator accepts none. */
  get signOut(): Authenticator["signOut"] {
    return this.#authenticator?.signOut?.bind(this.#authenticator);
  }

  /**
   * The authenticator that the options name. `given` replaces it and is not closed.
   * @throws {ConfigError}
   */
  async openAuthenticator(options: AuthOptions, given?: Authenticator): Promise<Authenticator> {
    const service = this.#service;
    if (given) {
      service.onReload(() => given.reload?.());
      this.#authenticator = given;
      return given;
    }
    const own = service.adopt(new ReplaceableAuthenticator(await createAuthenticator(options, service.log)), (own) => own.close());
    service.onReload(() => own.reload());
    this.#authenticator = own;
    this.#ownAuthenticator = own;
    return own;
  }

  /**
   * Prepares an authenticator of other options. Returns whether there is one; an authenticator of the embedding program stays. The previous
   * one works until {@link closeRetired} is called, after what it has accepted was verified again.
   * @throws {ConfigError}
   */
  async prepareAuthenticator(change: Change, options: AuthOptions): Promise<boolean> {
    const own = this.#ownAuthenticator;
    if (own === undefined) return false;
    const next = await createAuthenticator(options, this.#service.log);
    change.onRevert(() => next.close?.());
    change.onCommit(() => void this.#retired.push(own.replace(next)));
    return true;
  }

  /** Closes the authenticators that were replaced. */
  closeRetired(): void {
    for (const authenticator of this.#retired.splice(0)) authenticator.close?.();
  }

  /**
   * The policy of a file, `undefined` without one.
   * @throws {ConfigError}
   */
  async openPolicy(file: string | undefined): Promise<Policy | undefined> {
    this.#service.defer(() => this.#policy?.close());
    this.#service.onReload(() => this.#policy?.reload());
    return this.#policy = await this.#readPolicy(file);
  }

  /**
   * Prepares the policy of another file; `use` is called with it. Tunnels allowed by the previous one stay until they are checked again.
   * @throws {ConfigError}
   */
  async preparePolicy(change: Change, file: string | undefined, use: (policy: Policy | undefined) => void): Promise<void> {
    const next = await this.#readPolicy(file);
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      this.#policy?.close();
      this.#policy = next;
      use(next);
    });
  }

  async #readPolicy(file: string | undefined): Promise<Policy | undefined> {
    return file === undefined ? undefined : await openPolicy(file, { log: this.#service.log });
  }
}
