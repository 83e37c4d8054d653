// One agent: its connections with graphs, and its tunnels.
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { AgentState, Page } from "../shared/service/api/types.ts";
import { DisconnectAgent, RevokeToken } from "./actions.tsx";
import { loss } from "./agents.tsx";
import { useSession } from "./api.ts";
import { Chart } from "./chart.tsx";
import { Badge, Expiry, Facts, Text, Time } from "./fields.tsx";
import { bytes, count, milliseconds, percent, rate, visible } from "./format.ts";
import { usePolled } from "./poll.ts";
import { href, type Route } from "./route.ts";
import { statesToColumns, useStates } from "./states.ts";
import { Tunnels } from "./tunnels.tsx";

const INTERVAL_MS = 2_000;
const ALL = ["connected", "draining", "gone"];

export function AgentPage({ id, route }: { id: string; route: Route }): JSX.Element {
  const { api, status } = useSession();
  const { value: page, error, reload } = usePolled(
    (signal) => api.get<Page<AgentState>>("agents", { agent: id, state: ALL, sort: "since", order: "desc", limit: 20 }, signal),
    { intervalMs: INTERVAL_MS, subject: id },
  );
  const connections = page?.items ?? [];
  const open = connections.filter(({ state }) => state !== "gone");
  // those that are gone matter while the agent is not here
  const shown = open.length > 0 ? open : connections.slice(0, 3);
  const noun = status.service === "agent" ? "Connection" : "Agent";
  return (
    <>
      <div class="bar">
        <h1>
          {noun} <Text>{id}</Text>
        </h1>
        {status.service !== "agent" && open.length > 0 && <DisconnectAgent agent={id} done={reload} />}
      </div>
      {error && <p role="alert" class="error">{error.message}</p>}
      {page?.total === 0 && <p class="empty">No agent of this name is connected here, or was lately.</p>}
      {shown.map((connection) => (
        <Connection
          key={connection.connection}
          connection={connection}
          isOne={open.length <= 1}
          reload={reload}
        />
      ))}
      <Tunnels route={route} isPart agent={status.service === "agent" ? undefined : id} />
    </>
  );
}

interface ConnectionProps {
  readonly connection: AgentState;
  /** Whether the agent has no other. */
  readonly isOne: boolean;
  readonly reload: () => void;
}

/** The share of packets lost between two states. */
function lossBetween(now: AgentState, before: AgentState | undefined): number | undefined {
  const sent = (now.sentPackets ?? 0) - (before?.sentPackets ?? 0);
  const lost = (now.lostPackets ?? 0) - (before?.lostPackets ?? 0);
  return before === undefined || now.sentPackets === undefined || sent < 0 || lost < 0 ? undefined : sent === 0 ? 0 : lost / sent;
}

function Connection({ connection: it, isOne, reload }: ConnectionProps): JSX.Element {
  const states = useStates(it.state === "gone" ? undefined : it);
  const data = useMemo(() => ({
    rtt: statesToColumns(states, 1, ({ rttMs }) => [rttMs]),
    loss: statesToColumns(states, 1, (now, before) => [lossBetween(now, before)]),
    rate: statesToColumns(states, 2, ({ sentRate, receivedRate }) => [receivedRate, sentRate]),
  }), [states]);
  const { lastError, labels, tokenId } = it;
  return (
    <section class="card" aria-label={`Connection ${visible(it.connection)}`}>
      <Facts
        facts={[
          ["State", <Badge key="state" state={it.state} />],
          ["Address", <Text key="address">{it.address}</Text>],
          ["Member", it.member && <Text key="member">{it.member}</Text>],
          ["Host", it.host && <Text key="host">{it.host}</Text>],
          ["Labels", labels && <Labels key="labels" labels={labels} />],
          ["Version", it.version && <Text key="version">{it.version}</Text>],
          ["Link", it.link && <Text key="link">{it.link.toUpperCase()}</Text>],
          ["Chosen because", it.linkReason && <Text key="why">{it.linkReason}</Text>],
          ["Via", it.via && <Text key="via">{it.via}</Text>],
          ["Connected", it.since && <Time key="since">{it.since}</Time>],
          ["Gone", it.until && <Time key="until">{it.until}</Time>],
          ["Reason", it.reason && <Text key="reason">{it.reason}</Text>],
          ["Tunnels", it.tunnels !== undefined ? count(it.tunnels) : undefined],
          ["Sent", it.sent !== undefined ? bytes(it.sent) : undefined],
          ["Received", it.received !== undefined ? bytes(it.received) : undefined],
          ["Round trip", it.rttMs !== undefined ? milliseconds(it.rttMs) : undefined],
          ["Loss", loss(it) !== undefined ? percent(loss(it)) : undefined],
          ["Congestion window", it.congestionWindow !== undefined ? bytes(it.congestionWindow) : undefined],
          [
            "Token",
            tokenId && (
              <a key="token" href={href(["agents"], { token: tokenId })}>
                <Text>{tokenId}</Text>
              </a>
            ),
          ],
          ["Token expires", it.tokenExpiresAt && <Expiry key="expires" at={it.tokenExpiresAt} />],
          [
            "Last error",
            lastError && (
              <span key="error">
                <Time>{lastError.at}</Time> <Text>{`${lastError.error}: ${lastError.reason}`}</Text>
              </span>
            ),
          ],
        ]}
      />
      {it.state !== "gone" && (
        <div class="charts">
          <Chart title="Round trip" lines={["Round trip"]} data={data.rtt} format={milliseconds} />
          <Chart title="Loss" lines={["Packets lost"]} data={data.loss} format={percent} least={0.01} />
          <Chart title="Rate" lines={["Received", "Sent"]} data={data.rate} format={rate} least={1_000} />
        </div>
      )}
      <div class="buttons">
        {!isOne && it.state !== "gone" && <DisconnectAgent agent={it.id} connection={it.connection} done={reload} />}
        {tokenId !== undefined && <RevokeToken tokenId={tokenId} done={reload} />}
      </div>
    </section>
  );
}

function Labels({ labels }: { labels: Readonly<Record<string, string>> }): JSX.Element {
  return (
    <>
      {Object.entries(labels).map(([name, value]) => (
        <a key={name} class="label" href={href(["agents"], { label: `${name}=${value}` })}>{visible(`${name}=${value}`)}</a>
      ))}
    </>
  );
}
