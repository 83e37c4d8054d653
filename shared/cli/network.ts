// The networks of a command.
import type { Net } from "../net/net.ts";

/** Creates a network. `threads` counts for the first one of a process. `ownsProcess`: its service is all that the process does. */
export type CreateNet = (options: { warn: (message: string) => void; threads?: number; ownsProcess: boolean }) => Net;

/** Runs a check with a network of its own. */
export async function checkWithNet(createNet: CreateNet, check: (net: Net) => Promise<unknown>, threads?: number): Promise<void> {
  const net = createNet({ warn: () => {}, threads, ownsProcess: false });
  try {
    await check(net);
  } finally {
    net.close();
  }
}

/** As {@link checkWithNet}, with a result. */
export async function withNet<T>(createNet: CreateNet, use: (net: Net) => Promise<T>): Promise<T> {
  let result!: T;
  await checkWithNet(createNet, async (net) => result = await use(net));
  return result;
}
