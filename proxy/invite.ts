// The command `invite`: prints the join string of an agent or a client, from the proxy's configuration and the private key of its tokens.
import { printQrCode } from "../shared/cli/qr_code.ts";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { decodeJwt } from "jose";
import { formatHostPort, splitHostPort } from "../shared/address/host_port.ts";
import { AuthenticationError, checkAgentId } from "../shared/auth/authenticator.ts";
import { generatePrivateKey, parsePrivateKey, parsePublicKeys, publicKeyOf, type SigningKey } from "../shared/auth/keys.ts";
import { signToken } from "../shared/auth/token.ts";
import { PRIVATE_KEY_FILE, readKey, writeOutput } from "../shared/cli/auth_files.ts";
import type { Subcommand, Terminal } from "../shared/cli/command.ts";
import { checkPatterns, LIST_WORDS, PIN_OF_KEY } from "../shared/config/common_options.ts";
import { formatJoin, type Invitation } from "../shared/config/join.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { readCertificates } from "../shared/tls/pem.ts";
import { AGENT_CERTIFICATE, openSelfSigned } from "../shared/tls/self_signed.ts";
import { keyPinOfChain, pinFor } from "../shared/tls/trust.ts";
import { proxyOptions } from "./options.ts";
import { type AddressOptions, agentAddresses, clientAddresses, type PublicAddresses } from "./public_address.ts";

const SECRET = 0o600;
const PUBLIC = 0o644;
const DAY_MS = 86_400_000;
/** Default lifetimes of tokens. */
const LIFETIME_MS = { agent: 365 * DAY_MS, client: DAY_MS };

const ownOptions = defineOptions({
  "agent-id": { kind: "string", description: "Id of the agent that is invited, or that the invited client reaches." },
  "client": { kind: "boolean", description: "Invite a client instead of the agent." },
  "http2": {
    kind: "boolean",
    description: "With client: name the address of http-proxy.http2-listen-address, so that the client's tunnels share a connection.",
  },
  "duration": {
    kind: "duration",
    maxMs: 2_562_047 * 3_600_000,
    description: "Time until the token expires; by default 365d for an agent, 24h for a client.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "allow": {
    guards: LIST_WORDS,
    kind: "list",
    description: "Allow-list patterns of the destinations that the token permits; by default all.",
    check: checkPatterns,
  },
  "in": {
    kind: "file",
    short: "i",
    default: PRIVATE_KEY_FILE,
    description: "Private key file, PEM. If it and the public key are missing, both are created.",
  },
  "pin-sha256": {
    kind: "string",
    description:
      "SHA-256 of the proxy's public key, sha256/ and base64, or of its certificate, where its file is not; system: its authority is one that " +
      "systems trust.",
    check: (pin) =>
      pin === SYSTEM || PIN_OF_KEY.test(pin) || /^[0-9a-f]{64}$/i.test(pin)
        ? undefined
        : `${JSON.stringify(pin)} is neither sha256/ and 44 characters of base64, nor 64 hexadecimal digits, nor ${SYSTEM}`,
  },
  "out": { kind: "file", short: "o", default: "-", description: "File for the string; - is standard output." },
  "force": { kind: "boolean", short: "f", description: "Replace an existing file." },
});

const SYSTEM = "system";

/** The options of the proxy that invitations depend on. */
const ofProxy = {
  "agent-server.listen-address": proxyOptions["agent-server.listen-address"],
  "agent-server.public-address": proxyOptions["agent-server.public-address"],
  "agent-server.tls.file.cert": proxyOptions["agent-server.tls.file.cert"],
  "http-proxy.listen-address": proxyOptions["http-proxy.listen-address"],
  "http-proxy.http2-listen-address": proxyOptions["http-proxy.http2-listen-address"],
  "http-proxy.public-address": proxyOptions["http-proxy.public-address"],
  "http-proxy.tls.enable": proxyOptions["http-proxy.tls.enable"],
  "http-proxy.tls.file.cert": proxyOptions["http-proxy.tls.file.cert"],
  "auth.type": { ...proxyOptions["auth.type"], default: "jwt" },
  "auth.jwt.public-key": proxyOptions["auth.jwt.public-key"],
  "auth.jwt.audience": proxyOptions["auth.jwt.audience"],
  "state-dir": proxyOptions["state-dir"],
  "acme.domain": proxyOptions["acme.domain"],
} as const;

type Values = ValuesOf<typeof ownOptions & typeof ofProxy>;

/** @param stateDirectory of the self-signed certificate, if no option names one */
export function inviteCommand(stateDirectory: string | undefined): Subcommand<Values> {
  return {
    name: "invite",
    description:
      "Print a join string for an agent or a client: the proxy's addresses, pin and a token. Takes the proxy's own options and configuration.",
    options: ownOptions,
    service: ofProxy,
    async run(values, terminal) {
      const { invitation, doubt, trust } = await invite(values, stateDirectory, terminal);
      const text = formatJoin(invitation);
      if (values.out !== "-") await writeOutput(text, { file: values.out, mode: SECRET, force: values.force }, terminal);
      else await print(text, invitation.role, terminal);
      const { role, agentId, servers, token } = invitation;
      const who = role === "agent" ? `the agent ${agentId}` : `a client of the agent ${agentId}`;
      terminal.report(`for ${who} at ${servers.join(", ")}; ${trust}`);
      if (doubt !== undefined) terminal.report(`warning: ${doubt}`);
      if (token === undefined && values.auth.type === "oidc") {
        terminal.report("it has no token: the client signs in with reverse-http login --issuer");
      } else if (token === undefined) {
        terminal.report("warning: it has no token: the proxy has --auth.type=noauth, and everyone who reaches it can use it");
      } else {
        const { jti, exp } = decodeJwt(token);
        terminal.report(`keep it secret: it has a token (jti ${jti}), which expires ${new Date(exp! * 1000).toISOString()}`);
      }
    },
  };
}

/** Prints the command and a QR code on a terminal, or else the string alone. */
async function print(text: string, role: Invitation["role"], terminal: Terminal): Promise<void> {
  const { write, columns } = terminal;
  if (columns === undefined) return write(`${text}\n`);
  write(`reverse-http ${role === "agent" ? "agent" : "connect"} --join ${text}${role === "agent" ? "" : " HOST:PORT"}\n`);
  await printQrCode(text, terminal);
}

interface Invited {
  readonly invitation: Invitation;
  /** Why others may not reach the addresses. */
  readonly doubt?: string;
  /** How the proxy is known. */
  readonly trust: string;
}

/** @throws {ConfigError} */
async function invite(values: Values, stateDirectory: string | undefined, terminal: Terminal): Promise<Invited> {
  const { agentId, client, http2, httpProxy } = values;
  if (agentId === undefined) throw new ConfigError("Cannot invite: --agent-id is required");
  try {
    checkAgentId(agentId);
  } catch (cause) {
    throw new ConfigError(`Cannot use --agent-id ${JSON.stringify(agentId)}: ${(cause as Error).message}`, { cause });
  }
  const role = client ? "client" : "agent";
  if (role === "agent" && values.auth.type === "oidc") {
    throw new ConfigError(
      "Cannot invite an agent: with --auth.type=oidc it gets its token from the issuer, by --auth.oidc.client-id and a secret",
    );
  }
  if (http2 && !client) throw new ConfigError("Cannot use --http2: it is for --client");
  const { addresses, doubt }: PublicAddresses = client
    ? clientAddresses(http2 ? { ...values, httpProxy: http2Listener(httpProxy) } : values)
    : agentAddresses(values);
  const zero = addresses.find((address) => address.endsWith(":0"));
  if (zero !== undefined) throw new ConfigError(`Cannot invite to ${zero}: the port changes with every start of the proxy; choose one`);
  const tls = !client || httpProxy.tls.enable;
  const { pin, trust } = tls
    ? await trustOf(values, stateDirectory, terminal)
    : { trust: "without TLS: use it in a network that you trust" };
  const token = values.auth.type === "jwt" ? await createToken(values, agentId, role, terminal) : undefined;
  return { invitation: { role, servers: addresses, agentId, tls, isHttp2: http2, pin, token }, doubt, trust };
}

/** Where clients connect that speak HTTP/2: another port under the same name. */
function http2Listener({ http2ListenAddress: listenAddress, publicAddress }: Values["httpProxy"]): AddressOptions["httpProxy"] {
  if (listenAddress === undefined) throw new ConfigError("Cannot use --http2: --http-proxy.http2-listen-address is not set");
  const { port } = splitHostPort(listenAddress);
  return { listenAddress, publicAddress: publicAddress && formatHostPort({ host: splitHostPort(publicAddress).host, port }) };
}

/** How the certificate that agents or clients see is recognized. */
async function trustOf(
  { client, pinSha256, stateDir, agentServer, httpProxy, acme }: Values,
  stateDirectory: string | undefined,
  { report }: Terminal,
): Promise<{ pin?: string; trust: string }> {
  if (pinSha256 === SYSTEM) return { trust: "its certificate is verified by the system's authorities" };
  if (pinSha256 !== undefined) {
    const pin = PIN_OF_KEY.test(pinSha256) ? pinSha256 : pinSha256.toLowerCase();
    return { pin, trust: `it has the pin ${pin}` };
  }
  const option = client ? "http-proxy.tls.file.cert" : "agent-server.tls.file.cert";
  const file = client ? httpProxy.tls.file.cert : agentServer.tls.file.cert;
  if (file === undefined && acme.domain.length > 0) {
    return { trust: "its certificate is that of --acme.domain, verified by the system's authorities" };
  }
  if (file === undefined) {
    if (client) throw new ConfigError(`Cannot invite a client: --${option} is required with --http-proxy.tls.enable, or --pin-sha256`);
    const path = stateDir || stateDirectory;
    if (path === undefined) throw new ConfigError("Cannot find the proxy's certificate: set --state-dir, or --pin-sha256");
    const isNew = !existsSync(join(path, `${AGENT_CERTIFICATE}.pem`));
    const { cert, file } = await openSelfSigned(AGENT_CERTIFICATE, { path, required: true }, silentLogger);
    if (isNew) report(`created the certificate ${file}: the proxy must be started by this user, or with --state-dir=${path}`);
    const pin = keyPinOfChain(cert);
    return { pin, trust: `its certificate is ${file}, with the pin ${pin}` };
  }
  let text;
  try {
    text = await readText(file, MAX_CERTIFICATES);
  } catch (cause) {
    throw new ConfigError(`Cannot read --${option} ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
  }
  const chain = readCertificates({ option, file, text }, "chain").text;
  if (pinFor(chain) === undefined) return { trust: "its certificate is verified by the system's authorities" };
  const pin = keyPinOfChain(chain);
  return { pin, trust: `its certificate is ${file}, whose key has the pin ${pin}: invite again when another key replaces it` };
}

/** Longest file of certificates, in bytes. */
const MAX_CERTIFICATES = 1024 * 1024;

async function createToken(values: Values, agentId: string, role: Invitation["role"], terminal: Terminal): Promise<string> {
  const { auth: { jwt: { audience } }, duration = LIFETIME_MS[role], allow } = values;
  const key = await openKey(values, terminal);
  try {
    return await signToken(key, { agentId, role, audience, durationMs: duration, allow });
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new ConfigError(`Cannot use --agent-id ${JSON.stringify(agentId)}: ${cause.message}`, { cause });
  }
}

/** The key that signs tokens. The first invitation creates it, with the public key for the proxy. */
async function openKey(
  { in: file, auth: { jwt: { publicKey: [publicFile = ""], publicKey } } }: Values,
  terminal: Terminal,
): Promise<SigningKey> {
  const known = publicKey.filter((name) => existsSync(name));
  if (!existsSync(file) && file !== "-") {
    if (known.length > 0) {
      throw new ConfigError(`Cannot read --in ${JSON.stringify(file)}: the file does not exist; the private key of ${known[0]} is needed`);
    }
    const text = generatePrivateKey("ES256");
    const key = parsePrivateKey(text);
    await writeOutput(text, { file, mode: SECRET, force: false }, terminal);
    await writeOutput(publicKeyOf(key), { file: publicFile, mode: PUBLIC, force: false }, terminal);
    terminal.report(
      `created the private key ${file}, and ${publicFile} for the proxy, which needs --auth.type=jwt and this file as --auth.jwt.public-key`,
    );
    return key;
  }
  const key = await readKey(file, terminal);
  await checkPair(key, file, known);
  return key;
}

/** The proxy would refuse the token of another key. @throws {ConfigError} */
async function checkPair(key: SigningKey, file: string, publicFiles: readonly string[]): Promise<void> {
  if (publicFiles.length === 0) return; // another machine than the proxy's
  const [own] = await parsePublicKeys(publicKeyOf(key));
  for (const name of publicFiles) {
    const keys = await parsePublicKeys(await readText(name, MAX_CERTIFICATES)).catch(() => []); // the proxy reports what it cannot read
    if (keys.some((known) => known.id === own!.id)) return;
  }
  throw new ConfigError(`Cannot use --in ${JSON.stringify(file)}: it is not the private key of ${publicFiles.join(", ")}`);
}
