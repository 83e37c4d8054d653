// The options by which operators' commands find a service. They may be in the environment and in the user's profile.
import { CLIENT_ENV_PREFIX, defineOptions, type ValuesOf } from "../shared/config/option.ts";

/** The options of every command that asks a service, by name. */
export const operatorOptions = defineOptions({
  "admin": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}ADMIN`,
    description:
      "The service: the path of its unix socket, or the URL of its admin address, such as https://proxy.example:9090. By default the socket of the " +
      "service of the packages that runs on this machine, such as /run/reverse-http-proxy/admin.sock.",
  },
  "admin-root-ca": {
    kind: "file",
    env: `${CLIENT_ENV_PREFIX}ADMIN_ROOT_CA`,
    description: "Certificates to trust for an https URL, PEM: of authorities, or the service's own. By default the system's authorities.",
  },
  "admin-token": {
    kind: "string",
    secret: true,
    env: `${CLIENT_ENV_PREFIX}ADMIN_TOKEN`,
    description: "Token for a URL, or file:NAME; only the latter on the command line. A socket needs none.",
  },
});

/** The options of operators' commands, by those commands. */
export const OPERATORS = { "status, agents, tunnels and top": operatorOptions };

/** As on the command line: `--admin-token` is `adminToken`. */
export type OperatorOptions = ValuesOf<typeof operatorOptions>;
