// The actions of operators, each with its confirmation. Viewers see none of them.
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import type { CloseTunnelRequest, DisconnectRequest, RevokeRequest } from "../shared/service/api/types.ts";
import { useIsOperator, useSession } from "./api.ts";
import { ActionButton } from "./dialog.tsx";
import { visible } from "./format.ts";

export function CloseTunnel({ id, done }: { id: string; done: () => void }): JSX.Element | null {
  const { api } = useSession();
  if (!useIsOperator()) return null;
  return (
    <ActionButton title="Close the tunnel" run={() => api.post("tunnels/close", { id } satisfies CloseTunnelRequest)} done={done}>
      <p>Client and destination get a reset at once. The client may open another tunnel.</p>
    </ActionButton>
  );
}

const AWAY = [[0, "It may connect again at once"], [60, "for a minute"], [3_600, "for an hour"], [86_400, "for a day"]] as const;

/** @param connection only this connection; without it all of the agent */
export function DisconnectAgent({ agent, connection, done }: { agent: string; connection?: string; done: () => void }): JSX.Element | null {
  const { api } = useSession();
  const away = useRef<HTMLSelectElement>(null);
  if (!useIsOperator()) return null;
  const run = () => {
    const request: DisconnectRequest = { agent, connection, awaySeconds: Number(away.current!.value) };
    return api.post("agents/disconnect", request);
  };
  return (
    <ActionButton title={connection === undefined ? "Disconnect the agent" : "Disconnect"} run={run} done={done}>
      <p>
        {connection === undefined ? "All connections" : "The connection"} of agent <strong>{visible(agent)}</strong>{" "}
        and its tunnels are closed.
      </p>
      <label>
        Keep it away <select ref={away}>{AWAY.map(([seconds, title]) => <option key={seconds} value={seconds}>{title}</option>)}</select>
      </label>
    </ActionButton>
  );
}

export function RevokeToken({ tokenId, done }: { tokenId: string; done: () => void }): JSX.Element | null {
  const { api } = useSession();
  if (!useIsOperator()) return null;
  return (
    <ActionButton title="Revoke the token" run={() => api.post("tokens/revoke", { tokenId } satisfies RevokeRequest)} done={done}>
      <p>
        Token <strong>{visible(tokenId)}</strong> is added to the revocation file, for good. What it has opened is closed.
      </p>
    </ActionButton>
  );
}
