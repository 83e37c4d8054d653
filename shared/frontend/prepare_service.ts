// What proxy and load balancer change alike when their options change: who clients are, what they may reach, and what operators see.
import type { AuthOptions } from "../auth/scheme.ts";
import type { AdminOptions } from "../config/common_options.ts";
import { type Change, differs } from "../service/change.ts";
import type { OperatorOptions } from "../service/operators/options.ts";
import type { ServiceRuntime } from "../service/runtime.ts";
import type { Frontend } from "./server.ts";

/** The options that matter. */
export interface SharedServiceOptions {
  readonly auth: AuthOptions & { readonly policyFile?: string };
  readonly audit: { readonly file?: string; readonly strict: boolean };
  readonly admin: AdminOptions & OperatorOptions;
}

/**
 * Prepares the change of `before` to `next`. Returns whether credentials must be verified again.
 * @throws {ConfigError}
 * @throws {NetError} if the admin address cannot be listened on
 */
export async function prepareService(
  change: Change,
  runtime: ServiceRuntime,
  frontend: Frontend,
  before: SharedServiceOptions,
  next: SharedServiceOptions,
): Promise<boolean> {
  const { policyFile, ...auth } = next.auth;
  const { policyFile: policyBefore, ...authBefore } = before.auth;
  const authenticates = differs(auth, authBefore) && await runtime.access.prepareAuthenticator(change, next.auth);
  if (policyFile !== policyBefore) await runtime.access.preparePolicy(change, policyFile, (policy) => frontend.update({ policy }));
  if (differs(next.audit, before.audit)) await runtime.audit.prepare(change, next.audit, (audit) => frontend.update({ audit }));
  if (differs(next.admin, before.admin)) await runtime.admin.prepare(change, next.admin);
  return authenticates;
}
