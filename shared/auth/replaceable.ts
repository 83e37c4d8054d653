// An authenticator that another one can take the place of, when the options change.
import type { Authenticator, ClientCredentials, ClientPeer, Identity, Peer } from "./authenticator.ts";

/** Passes everything to the authenticator that is in force. */
export class ReplaceableAuthenticator implements Authenticator {
  #current: Authenticator;

  constructor(first: Authenticator) {
    this.#current = first;
  }

  /** Puts `next` in force, and returns the previous one, whose identities stay until they are verified again. */
  replace(next: Authenticator): Authenticator {
    const previous = this.#current;
    this.#current = next;
    return previous;
  }

  authenticateAgent(credentials: Uint8Array, peer: Peer): string | Identity | Promise<string | Identity> {
    return this.#authenticate((current) => current.authenticateAgent(credentials, peer));
  }

  authenticateClient(credentials: ClientCredentials, peer: ClientPeer): string | Identity | Promise<string | Identity> {
    return this.#authenticate((current) => current.authenticateClient(credentials, peer));
  }

  #authenticate<T extends string | Identity | undefined>(ask: (current: Authenticator) => T | Promise<T>): T | Promise<T> {
    const answer = ask(this.#current);
    return answer instanceof Promise ? this.#unlessReplaced(answer, ask) : answer;
  }

  /** A result of an authenticator that was replaced meanwhile does not count. */
  async #unlessReplaced<T extends string | Identity | undefined>(
    first: Promise<T>,
    ask: (current: Authenticator) => T | Promise<T>,
  ): Promise<T> {
    for (let answer: T | Promise<T> = first;; answer = ask(this.#current)) {
      const current = this.#current;
      try {
        const identity = await answer;
        if (current === this.#current) return identity;
        if (typeof identity === "object") identity.release?.();
      } catch (error) {
        if (current === this.#current) throw error;
      }
    }
  }

  get anonymous(): Authenticator["anonymous"] {
    return this.#current.anonymous && ((peer) => this.#authenticate((current) => current.anonymous?.(peer)));
  }

  get revoke(): Authenticator["revoke"] {
    return this.#current.revoke?.bind(this.#current);
  }

  get signOut(): Authenticator["signOut"] {
    return this.#current.signOut?.bind(this.#current);
  }

  async reload(): Promise<void> {
    await this.#current.reload?.();
  }

  close(): void {
    this.#current.close?.();
  }
}
