// The options by which proxies and load balancers answer operators for each other.
import { checkRemote } from "../address/host_port.ts";
import { NOT_GIVEN } from "./common_options.ts";
import { defineOptions, type ValuesOf } from "./option.ts";

/** Why these options need a restart. */
const KNOWN = "the other members know this one by it";

export const clusterOptions = defineOptions({
  "admin.cluster.key-file": {
    restart: KNOWN,
    guards: NOT_GIVEN,
    kind: "file",
    description:
      "File with a secret of at least 32 characters that all proxies and lbs of the store share: each of them answers operators for all, with " +
      "scope=cluster. Several lines replace a secret: the first one signs. Reloaded when it changes. By default each answers for itself alone.",
  },
  "admin.cluster.address": {
    restart: KNOWN,
    kind: "string",
    description:
      "Address, host:port, at which the others reach admin.listen-address; by default that one, with the host name if it is for every interface.",
    check: (address) => checkRemote(address),
  },
});

/** As on the command line: `--admin.cluster.key-file` is `keyFile`. */
export type ClusterOptions = ValuesOf<typeof clusterOptions>["admin"]["cluster"];
