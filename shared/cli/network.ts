// The networks of a command.
import type { Net } from "../net/types.ts";

/** Creates a network. `ownsProcess`: its service is all that the process does. */
export type CreateNet = (options: { warn: (message: string) => void; ownsProcess: boolean }) => Net;

/** Runs a check with a network of its own. */
export async function checkWithNet(createNet: CreateNet, check: (net: Net) => Promise<unknown>): Promise<void> {
  const net = createNet({ warn: () => {}, ownsProcess: false });
  try {
    await check(net);
  } finally {
    net.close();
  }
}
