// One tunnel: its story from the client's request to its end, and its rate.
import type { ComponentChildren, JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { TunnelState } from "../shared/service/api/types.ts";
import { CloseTunnel, RevokeToken } from "./actions.tsx";
import { ApiError, useSession } from "./api.ts";
import { Chart } from "./chart.tsx";
import { AgentLink, Badge, Direction, Expiry, Facts, Text, Time } from "./fields.tsx";
import { bytes, duration, milliseconds, rate } from "./format.ts";
import { usePolled } from "./poll.ts";
import { href } from "./route.ts";
import { statesToColumns, useStates } from "./states.ts";

const INTERVAL_MS = 2_000;

export function TunnelPage({ id }: { id: string }): JSX.Element {
  const { api } = useSession();
  const { value: tunnel, error, reload } = usePolled(
    (signal) => api.get<TunnelState>(`tunnels/${encodeURIComponent(id)}`, {}, signal),
    { intervalMs: INTERVAL_MS, subject: id },
  );
  const states = useStates(tunnel?.state === "open" ? tunnel : undefined);
  const data = useMemo(() => statesToColumns(states, 2, ({ sentRate, receivedRate }) => [receivedRate, sentRate]), [states]);
  const isForgotten = error instanceof ApiError && error.status === 404;
  return (
    <>
      <div class="bar">
        <h1>
          Tunnel to <Text>{tunnel?.destination ?? id}</Text>
        </h1>
        {tunnel && <Badge state={tunnel.state} />}
        {tunnel && tunnel.state !== "ended" && !isForgotten && <CloseTunnel id={id} done={reload} />}
        {tunnel?.tokenId !== undefined && <RevokeToken tokenId={tunnel.tokenId} done={reload} />}
      </div>
      {error && <p role="alert" class="error">{isForgotten ? "The service does not know this tunnel, or no longer." : error.message}</p>}
      {tunnel && (
        <div class="columns">
          <Story tunnel={tunnel} />
          <section class="card" aria-labelledby="facts">
            <h2 id="facts">Now</h2>
            <Facts
              facts={[
                ["Age", duration(tunnel.ageMs)],
                [
                  "Sent to the destination",
                  <span key="sent">
                    {bytes(tunnel.sent)} · {rate(tunnel.sentRate)} <Direction state={tunnel.sending} />
                  </span>,
                ],
                [
                  "Received from it",
                  <span key="received">
                    {bytes(tunnel.received)} · {rate(tunnel.receivedRate)} <Direction state={tunnel.receiving} />
                  </span>,
                ],
                [
                  "Request id",
                  <code key="request">
                    <Text>{tunnel.requestId}</Text>
                  </code>,
                ],
                ["User", tunnel.user && <Text key="user">{tunnel.user}</Text>],
                ["Token expires", tunnel.tokenExpiresAt && <Expiry key="expires" at={tunnel.tokenExpiresAt} />],
                ["Member", tunnel.member && <Text key="member">{tunnel.member}</Text>],
              ]}
            />
            {states.length > 0 && <Chart title="Rate" lines={["Received", "Sent"]} data={data} format={rate} least={1_000} />}
          </section>
        </div>
      )}
    </>
  );
}

/** What has happened, in order. */
function Story({ tunnel: it }: { tunnel: TunnelState }): JSX.Element {
  const network = it.network === "udp" ? "UDP" : "TCP";
  return (
    <section class="card" aria-labelledby="story">
      <h2 id="story">Story</h2>
      <ol class="story">
        <Step at={it.startedAt}>
          {it.client === undefined ? "A request" : (
            <>
              Client{" "}
              <a href={href(["tunnels"], { client: withoutPort(it.client) })}>
                <Text>{it.client}</Text>
              </a>
            </>
          )}
          {it.peer !== undefined && (
            <>
              {" "}through <Text>{it.peer}</Text>
            </>
          )} asked for <Text>{it.destination}</Text> ({network}, <Text>{it.protocol}</Text>)
          {it.tokenId !== undefined && (
            <>
              , with token{" "}
              <a href={href(["tunnels"], { token: it.tokenId })}>
                <Text>{it.tokenId}</Text>
              </a>
            </>
          )}.
        </Step>
        {it.via !== undefined && (
          <Step>
            It was sent to {it.agent === undefined ? "the agent" : (
              <>
                agent <AgentLink id={it.agent} />
              </>
            )} at <Text>{it.via.address}</Text>
            {it.via.link !== undefined && <>{" "}over {it.via.link.toUpperCase()}</>}.
          </Step>
        )}
        {it.connectedAt !== undefined && <Step at={it.connectedAt}>The destination was connected after {milliseconds(it.setupMs)}.</Step>}
        {it.state === "connecting" && <Step>The destination is being connected.</Step>}
        {it.state === "open" && <Step>It is open.</Step>}
        {it.state === "ended" && (
          <Step at={it.endedAt} isFailure={it.error !== undefined}>
            {it.error === undefined ? "Both directions ended" : (
              <>
                It failed: <Text>{it.reason ?? it.error}</Text> (<code>{it.error}</code>)
              </>
            )}
            {it.status !== undefined && <>, status {it.status}</>}, after {bytes(it.sent)} to the destination and {bytes(it.received)}{" "}
            from it.
          </Step>
        )}
      </ol>
    </section>
  );
}

function Step({ at, isFailure, children }: { at?: string; isFailure?: boolean; children: ComponentChildren }): JSX.Element {
  return (
    <li class={isFailure ? "failure" : ""}>
      {at !== undefined && <Time>{at}</Time>}
      <div>{children}</div>
    </li>
  );
}

/** The address of `host:port`. */
function withoutPort(address: string): string {
  return address.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
}
