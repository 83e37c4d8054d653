// The admin API, as the page calls it. URLs are relative to the page, which may be below any path.
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { ActionResult, ClusterStatus, ErrorBody, Status } from "../shared/service/api/types.ts";

/** The server's refusal. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Parameters of a query; `undefined` and empty ones are left out, and lists are repeated. */
export type Query = Readonly<Record<string, string | number | readonly string[] | undefined>>;

export class Api {
  readonly #token?: string;
  readonly #refused: (message: string) => void;
  readonly #scope?: "cluster";

  /**
   * @param token `undefined`: the browser has the cookie of a session
   * @param refused called when the server does not accept the token
   * @param scope whom requests are for. Default: the service alone
   */
  constructor(token: string | undefined, refused: (message: string) => void, scope?: "cluster") {
    this.#token = token;
    this.#refused = refused;
    this.#scope = scope;
  }

  /** The same for all members of the service's cluster. */
  ofCluster(): Api {
    return new Api(this.#token, this.#refused, "cluster");
  }

  /** @throws {ApiError} */
  async get<T>(path: string, query: Query, signal?: AbortSignal): Promise<T> {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...query, scope: this.#scope })) {
      for (const each of Array.isArray(value) ? value : [value]) {
        if (each !== undefined && each !== "") parameters.append(name, String(each));
      }
    }
    return await this.#call<T>(`${path}?${parameters}`, { signal });
  }

  /** @throws {ApiError} also if some members have not done it */
  async post(path: string, body: object): Promise<ActionResult> {
    const result = await this.#call<ActionResult>(this.#scope === undefined ? path : `${path}?scope=${this.#scope}`, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    });
    const failed = (result.members ?? []).flatMap(({ member, error }) => error === undefined ? [] : [`${member}: ${error}`]);
    if (failed.length > 0) throw new ApiError(200, `Done, but not everywhere. ${failed.join("; ")}`);
    return result;
  }

  async #call<T>(path: string, init: RequestInit): Promise<T> {
    const isSession = this.#token === undefined;
    const headers = { ...init.headers, ...isSession ? {} : { Authorization: `Bearer ${this.#token}` } };
    const credentials = isSession ? "same-origin" : "omit";
    const response = await fetch(`api/v1/${path}`, { ...init, headers, cache: "no-store", credentials });
    if (response.ok) return await response.json() as T;
    const body = await response.json().catch(() => ({})) as Partial<ErrorBody>;
    const message = body.error ?? `The server responded with status ${response.status}`;
    if (response.status === 401) this.#refused(message);
    throw new ApiError(response.status, message);
  }
}

/** How one gets in besides tokens, and whether one is in by the cookie of a session. */
export interface SignIn {
  /** URL of the identity provider. Default: there is none. */
  readonly issuer?: string;
  readonly isSession: boolean;
}

/** Never rejects. */
export async function findSignIn(): Promise<SignIn> {
  try {
    const response = await fetch("login/methods", { cache: "no-store", credentials: "same-origin" });
    return await response.json() as SignIn;
  } catch {
    return { isSession: false };
  }
}

/** Ends the session of the cookie. Never rejects. */
export async function endSession(): Promise<void> {
  await fetch("logout", { method: "POST", credentials: "same-origin" }).catch(() => {});
}

/** What all views use. */
export interface Session {
  readonly api: Api;
  /** For what is about the service alone, also while the page shows its cluster. */
  readonly own: Api;
  readonly status: Status | ClusterStatus;
  /** Whether the page shows all members of the service's cluster. */
  readonly isWide: boolean;
  /** Loads the status now, as after an action. */
  readonly reload: () => void;
}

export const SessionContext = createContext<Session | undefined>(undefined);

export function useSession(): Session {
  return useContext(SessionContext)!;
}

/** Whether the token permits actions. */
export function useIsOperator(): boolean {
  return useSession().status.role === "operator";
}
