// Runs `reverse-http top` on a terminal: reads from the service at an interval, draws, and does what keys ask for.
import type { FullScreen } from "../shared/cli/full_screen.ts";
import type { ActionResult, AgentState, Page, Status, TunnelState } from "../shared/service/api/types.ts";
import { messageOf } from "../shared/log/error_message.ts";
import { quantity } from "../shared/log/quantity.ts";
import type { AdminClient } from "./client.ts";
import { type Action, drawTop, initialState, pressKey, queryOf, type TopData } from "./top.ts";

/** Resolves when the user quits. */
export async function runTop(client: Pick<AdminClient, "get" | "post">, screen: FullScreen, intervalMs: number): Promise<void> {
  const state = initialState();
  let data: TopData | undefined;
  let refreshing: Promise<void> | undefined;
  const draw = () => data && screen.draw(drawTop(state, data, screen));
  const ids = () => (state.view === "tunnels" ? data?.tunnels?.items : data?.agents?.items)?.map(({ id }) => id) ?? [];

  const refresh = async (): Promise<void> => {
    try {
      const { view } = state;
      const [status, page] = await Promise.all([
        client.get<Status>("status"),
        client.get<Page<unknown>>(`${view}?${queryOf(state, screen.rows)}`),
      ]);
      data = view === "tunnels" ? { status, tunnels: page as Page<TunnelState> } : { status, agents: page as Page<AgentState> };
      state.selected = Math.max(0, Math.min(state.selected, ids().length - 1));
    } catch (error) {
      state.message = messageOf(error);
    }
    draw();
  };
  /** One after the other; a key that comes meanwhile is followed by another look. */
  let isDue = false;
  const refreshSoon = (): void => {
    isDue = true;
    refreshing ??= (async () => {
      while (isDue) {
        isDue = false;
        await refresh();
      }
      refreshing = undefined;
    })(); // never rejects
  };
  const act = async ({ kind, id }: Action): Promise<void> => {
    try {
      const { affected, members = [] } = kind === "close"
        ? await client.post<ActionResult>("tunnels/close", { id })
        : await client.post<ActionResult>("agents/disconnect", { agent: id });
      const failed = members.flatMap(({ member, error }) => error === undefined ? [] : [`; not at ${member}: ${error}`]);
      state.message = `${
        kind === "close" ? "the tunnel was closed" : `${quantity(affected, "connection was", "connections were")} closed`
      }${failed.join("")}`;
    } catch (error) {
      state.message = messageOf(error);
    }
    refreshSoon();
  };

  const { promise: quit, resolve } = Promise.withResolvers<void>();
  screen.onResize(refreshSoon);
  screen.onKey((key) => {
    const effect = pressKey(state, key, ids());
    if (effect === "quit") return resolve();
    if (effect === "refresh") refreshSoon();
    else if (effect !== undefined) void act(effect); // never rejects
    draw();
  });
  const timer = setInterval(refreshSoon, intervalMs);
  refreshSoon();
  try {
    await quit;
  } finally {
    clearInterval(timer);
    screen.close();
  }
}
