// Forwards: destinations that are published at addresses of their own. Defines the option, and which forwards share a listener. Opens nothing.
import { checkRemote } from "../address/host_port.ts";
import { AuthenticationError, checkAgentId } from "../auth/authenticator.ts";
import { checkNetworks } from "../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";

export const forwardOptions = defineOptions({
  "forward": {
    kind: "records",
    description: "Publish a destination of an agent at an address of its own, for clients that use no proxy.",
    keys: {
      "listen": { kind: "address", description: "Address for clients." },
      "network": {
        kind: "string",
        default: "tcp",
        choices: ["tcp", "udp"],
        description: "Whether clients use tcp or udp; the agent's allow-list needs a pattern with udp: for the latter.",
      },
      "agent": { kind: "string", description: "The agent's id.", check: agentIdProblem },
      "to": { kind: "string", description: "Destination, host:port, as the agent reaches it.", check: (to) => checkRemote(to) },
      "allow": {
        kind: "list",
        description: "Addresses and networks of clients that may connect; all: everyone; by default everyone, with a warning.",
        check: checkNetworks({ words: true }),
      },
      "token-file": {
        kind: "file",
        optional: true,
        description: "File with a client's token for the agent, read for each connection; lb needs one with auth.type=jwt.",
      },
    },
    check: (forwards) => {
      const twice = forwards.find(({ listen, network }, i) =>
        forwards.findIndex((other) => other.listen === listen && other.network === network) < i
      );
      return twice === undefined ? undefined : `two records listen on ${twice.listen}`;
    },
  },
});

/** One record of the option. */
export type Forward = ValuesOf<typeof forwardOptions>["forward"][number];

/** Whether the forward says which clients may connect, be it all. */

function agentIdProblem(id: string): string | undefined {
  try {
    checkAgentId(id);
    return undefined;
  } catch (error) {
    if (!(error instanceof AuthenticationError)) throw error;
    return error.message.replace("Cannot use the agent id: ", "");
  }
}
