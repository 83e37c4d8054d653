// Common parts of proxy and load balancer besides their listeners: authentication, authorization, and the admin API.
import type { Authenticator } from "../auth/authenticator.ts";
import { checkClientCertificates, type ClientCertificateOptions } from "../auth/mtls.ts";
import { checkLogout } from "../auth/oidc.ts";
import { type AuthOptions, checkAuthOptions, clientScheme } from "../auth/scheme.ts";
import type { ClusterOptions } from "../config/cluster_options.ts";
import type { AdminOptions } from "../config/common_options.ts";
import { silentLogger } from "../log/logger.ts";
import { openPolicy, type Policy } from "../policy/policy.ts";
import { checkAdminOptions } from "../service/admin.ts";
import type { AuditLog } from "../service/audit.ts";
import { type Change, differs } from "../service/change.ts";
import { checkClusterOptions } from "../service/cluster/cluster.ts";
import type { OperatorOptions } from "../service/operators/options.ts";
import type { ServiceRuntime } from "../service/runtime.ts";
import { checkStoreOptions, type StoreOptions } from "../store/options.ts";
import type { Store } from "../store/store.ts";
import type { TlsCheck } from "../tls/reloadable_tls.ts";
import type { TracingOptions } from "../tracing/options.ts";
import { checkTracingOptions } from "../tracing/otlp.ts";
import type { Tracer } from "../tracing/span.ts";
import { checkForwards } from "./forwards/listeners.ts";
import type { Forward } from "./forwards/forwards.ts";
import { checkListenAddresses, type ListenAddressOptions } from "./listen_addresses.ts";
import type { Frontend } from "./server.ts";

/** The options that matter. */
export interface ServicePartsOptions {
  readonly auth: AuthOptions & { readonly policyFile?: string };
  readonly store: StoreOptions;
  readonly audit: { readonly file?: string; readonly strict: boolean };
  readonly tracing: TracingOptions;
  readonly admin: AdminOptions & OperatorOptions & { readonly cluster: ClusterOptions };
}

/** The options that {@link checkCombinations} compares. */
export type CombinedOptions = ListenAddressOptions & ClientCertificateOptions & Pick<ServicePartsOptions, "auth" | "admin"> & {
  readonly forward: readonly Forward[];
};

/** Information about a service besides its options. */
export interface ServiceTraits {
  /** Whether an authenticator of the embedding program replaces the options' scheme. Default: none does. */
  readonly hasOwnAuthenticator?: boolean;
  /** Whether the next hop asks for credentials, as proxies ask lb. */
  readonly isAuthenticatedAgain: boolean;
}

/**
 * Checks options that depend on each other.
 * @throws {ConfigError}
 */
export async function checkCombinations(
  options: CombinedOptions,
  { hasOwnAuthenticator = false, isAuthenticatedAgain }: ServiceTraits,
): Promise<void> {
  const authType = hasOwnAuthenticator ? undefined : clientScheme(options.auth);
  await checkForwards(options.forward, { authType, isAuthenticatedAgain, knowsCertificates: options.auth.clients.includes("mtls") });
  checkClientCertificates(options);
  checkLogout(options);
  checkListenAddresses(options);
}

/**
 * Checks what {@link openParts} would find out, and {@link checkCombinations}.
 * @throws {ConfigError}
 */
export async function checkParts(options: ServicePartsOptions & CombinedOptions, net: TlsCheck, traits: ServiceTraits): Promise<void> {
  const { policyFile } = options.auth;
  await checkAuthOptions(options.auth);
  await checkCombinations(options, traits);
  await checkAdminOptions(options.admin, net);
  await checkClusterOptions(options);
  if (policyFile !== undefined) (await openPolicy(policyFile, { log: silentLogger })).close();
  await checkStoreOptions(options.store);
  await checkTracingOptions(options.tracing);
}

/** The parts, which the runtime closes. */
export interface ServiceParts {
  readonly authenticator: Authenticator;
  /** Missing if everything is allowed. */
  readonly policy?: Policy;
  /** Missing if the options name none. */
  readonly store?: Store;
  readonly audit?: AuditLog;
  readonly tracer?: Tracer;
}

export interface OpenParts {
  /** Replaces the scheme that the options name. */
  readonly authenticator?: Authenticator;
  /** Replaces the store that the options name. It is not closed. */
  readonly store?: Store;
  /** Lifetime in milliseconds of an entry in the store that is not renewed. */
  readonly ttlMs: number;
}

/**
 * Opens the parts, and listens for operators.
 * @throws {ConfigError}
 * @throws {NetError} if the admin address cannot be listened on
 */
export async function openParts(runtime: ServiceRuntime, options: ServicePartsOptions, given: OpenParts): Promise<ServiceParts> {
  const { ttlMs } = given;
  const authenticator = await runtime.access.openAuthenticator(options.auth, given.authenticator);
  const policy = await runtime.access.openPolicy(options.auth.policyFile);
  const store = await runtime.store.open(options.store, ttlMs, given.store);
  const audit = await runtime.audit.open(options.audit);
  const tracer = await runtime.openTracer(options.tracing);
  await runtime.admin.listen(options.admin);
  await runtime.admin.joinCluster(options.admin.cluster, store, ttlMs);
  return { authenticator, policy, store, audit, tracer };
}

/**
 * Prepares the change of `before` to `next`, but for the store and the tracer. Returns whether credentials must be verified again.
 * @throws {ConfigError}
 * @throws {NetError} if the admin address cannot be listened on
 */
export async function prepareParts(
  change: Change,
  runtime: ServiceRuntime,
  frontend: Frontend,
  before: ServicePartsOptions,
  next: ServicePartsOptions,
): Promise<boolean> {
  const { policyFile, ...auth } = next.auth;
  const { policyFile: policyBefore, ...authBefore } = before.auth;
  const authenticates = differs(auth, authBefore) && await runtime.access.prepareAuthenticator(change, next.auth);
  if (policyFile !== policyBefore) await runtime.access.preparePolicy(change, policyFile, (policy) => frontend.update({ policy }));
  if (differs(next.audit, before.audit)) await runtime.audit.prepare(change, next.audit, (audit) => frontend.update({ audit }));
  if (differs(next.admin, before.admin)) await runtime.admin.prepare(change, next.admin);
  return authenticates;
}
