// The options that say which people and programs are operators, besides --admin.token-file.
import { NOT_GIVEN } from "../../config/common_options.ts";
import { defineOptions, pemContentProblem, type ValuesOf } from "../../config/option.ts";
import { urlProblem } from "../../config/url.ts";

export const operatorOptions = defineOptions({
  "admin.jwt.public-key": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "list",
    description:
      "Public key files, PEM or JWKS, that verify tokens of auth jwt operator for the API. Reloaded when they change. By default none.",
    check: (files) => files.includes("") ? "a file name is empty" : files.map(pemContentProblem).find(Boolean),
  },
  "admin.oidc.issuer": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "string",
    description:
      "URL of an OpenID Connect issuer that authenticates operators, exactly as in the iss of its tokens; https, or http to this machine.",
    check: urlProblem,
  },
  "admin.oidc.client-id": {
    reload: "at once",
    kind: "string",
    description:
      "Client id of the dashboard at the issuer; its tokens must name it in aud, and so must its logout tokens, which end sessions.",
  },
  "admin.oidc.client-secret-file": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "file",
    description: "File with the client's secret at the issuer. Without it the dashboard is a public client, which PKCE protects.",
  },
  "admin.oidc.url": {
    reload: "at once",
    kind: "string",
    description:
      "URL of the dashboard as browsers see it; login/callback below it is the redirect URI at the issuer. https, or http to this machine. " +
      "Without it, people cannot sign in at the dashboard, and tokens of the issuer are accepted.",
    check: urlProblem,
  },
  "admin.oidc.name-claim": {
    reload: "at once",
    kind: "string",
    default: "preferred_username",
    description: "Claim with the person's name, for logs; dots lead into nested claims.",
  },
  "admin.oidc.groups-claim": {
    reload: "at once",
    kind: "string",
    default: "groups",
    description: "Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles.",
  },
  "admin.oidc.operators": { reload: "at once", kind: "list", description: "Groups whose members have the role operator. By default none." },
  "admin.oidc.viewers": { reload: "at once", kind: "list", description: "Groups whose members have the role viewer. By default none." },
  "admin.oidc.session": {
    reload: "at once",
    kind: "duration",
    default: "8h",
    description: "Time after which a person must sign in at the dashboard again.",
    check: (ms) => ms >= 60_000 ? undefined : "it must be 1m or more",
  },
});

/** As on the command line: `--admin.oidc.client-id` is `oidc.clientId`. */
export type OperatorOptions = ValuesOf<typeof operatorOptions>["admin"];
