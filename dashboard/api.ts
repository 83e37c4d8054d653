// The admin API, as the page calls it. URLs are relative to the page, which may be below any path.
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { ActionResult, ErrorBody, Status } from "../shared/service/api/types.ts";

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
  readonly #token: string;
  readonly #refused: (message: string) => void;

  /** @param refused called when the server does not accept the token */
  constructor(token: string, refused: (message: string) => void) {
    this.#token = token;
    this.#refused = refused;
  }

  /** @throws {ApiError} */
  async get<T>(path: string, query: Query, signal?: AbortSignal): Promise<T> {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) {
      for (const each of Array.isArray(value) ? value : [value]) {
        if (each !== undefined && each !== "") parameters.append(name, String(each));
      }
    }
    return await this.#call<T>(`${path}?${parameters}`, { signal });
  }

  /** @throws {ApiError} */
  async post(path: string, body: object): Promise<ActionResult> {
    return await this.#call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  }

  async #call<T>(path: string, init: RequestInit): Promise<T> {
    const headers = { ...init.headers, Authorization: `Bearer ${this.#token}` };
    const response = await fetch(`api/v1/${path}`, { ...init, headers, cache: "no-store", credentials: "omit" });
    if (response.ok) return await response.json() as T;
    const body = await response.json().catch(() => ({})) as Partial<ErrorBody>;
    const message = body.error ?? `The server responded with status ${response.status}`;
    if (response.status === 401) this.#refused(message);
    throw new ApiError(response.status, message);
  }
}

/** What all views use. */
export interface Session {
  readonly api: Api;
  readonly status: Status;
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
