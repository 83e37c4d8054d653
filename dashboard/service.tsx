// The service itself: its state, and the actions on the whole of it.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { ClusterConfiguration, ClusterStatus, Configuration, LogLevelRequest, Sample, Status } from "../shared/service/api/types.ts";
import { useIsOperator, useSession } from "./api.ts";
import { ActionButton } from "./dialog.tsx";
import { Facts, Text, Time } from "./fields.tsx";
import { bytes, count, duration, visible } from "./format.ts";
import { usePolled } from "./poll.ts";

const LEVELS: readonly LogLevelRequest["level"][] = ["debug", "info", "warn", "error"];

export function Service(): JSX.Element {
  const { own, status, isWide, reload } = useSession();
  const isOperator = useIsOperator();
  const { problems, earlierProcesses: earlier } = status;
  return (
    <>
      <h1>Service</h1>
      <section class="card" aria-label="State">
        <Facts
          facts={[
            ["Service", status.service],
            ["Host", <Text key="host">{status.host}</Text>],
            ["Version", status.version],
            ["Instance", <code key="instance">{status.instance}</code>],
            [
              "Started",
              <span key="started">
                <Time>{status.startedAt}</Time> ({duration(Date.parse(status.at) - Date.parse(status.startedAt))} ago)
              </span>,
            ],
            ["Handed over by", earlier && `processes that finish what is open: ${earlier.join(", ")}`],
            ["Ready", status.ready ? "yes" : `no: ${Object.values(problems).join(", ")}`],
            ["Memory", bytes(ownSample(status).memory)],
            ["Your role", status.role],
            ["Log level", isOperator && status.logLevel !== undefined ? <LogLevel key="level" /> : status.logLevel],
          ]}
        />
      </section>
      {"members" in status && <Members members={status.members} />}
      {isWide ? <ClusterOptions /> : <OwnOptions />}
      {isOperator && (
        <div class="buttons">
          <ActionButton title="Reload the files" isHarmless run={() => own.post("reload", {})} done={reload}>
            <p>Certificates, keys, tokens and revocation lists are read again, as after SIGHUP.</p>
          </ActionButton>
          <ActionButton title="Drain and stop" run={() => own.post("drain", {})} done={reload}>
            <p>
              The service <strong>{status.service}</strong>{" "}
              stops accepting, waits for open tunnels as long as its drain timeout says, and ends, as after SIGTERM.
            </p>
          </ActionButton>
        </div>
      )}
    </>
  );
}

/** The numbers of a cluster's status are sums. */
function ownSample(status: Status | ClusterStatus): Sample {
  const own = "members" in status ? status.members.find(({ member }) => member === status.member)?.status : undefined;
  return (own ?? status).now;
}

/** The options of this service. */
function OwnOptions(): JSX.Element | null {
  const { own, status } = useSession();
  const { value } = usePolled((signal) => own.get<Configuration>("configuration", {}, signal), { subject: status.instance });
  return value === undefined ? null : <Options configuration={value} />; // those of a program that embeds the service are its own
}

/** The options of all members, a table for those that have the same. */
function ClusterOptions(): JSX.Element {
  const { api, status } = useSession();
  const { value } = usePolled((signal) => api.get<ClusterConfiguration>("configuration", {}, signal), { subject: status.instance });
  const groups = new Map<string, { readonly configuration: Configuration; readonly names: string[] }>();
  for (const { member, service, configuration } of value?.members ?? []) {
    if (configuration === undefined) continue;
    const key = JSON.stringify([service, configuration]);
    const group = groups.get(key) ?? { configuration, names: [] };
    groups.set(key, group);
    group.names.push(`${service} ${member}`);
  }
  return (
    <>
      {[...groups].map(([key, { configuration, names }]) => <Options key={key} configuration={configuration} of={names.join(", ")} />)}
    </>
  );
}

/**
 * The options that differ from the defaults.
 * @param of the services that have them. Default: this one
 */
function Options({ configuration: { isReloaded, changed }, of }: { configuration: Configuration; of?: string }): JSX.Element {
  const title = "Options that differ from the defaults";
  return (
    <section class="card" aria-label={of === undefined ? title : `${title}: ${visible(of)}`}>
      <h2>{title}</h2>
      {of !== undefined && (
        <p>
          <Text>{of}</Text>
        </p>
      )}
      {!isReloaded && <p class="error">The last reload has failed: the configuration before it is in force.</p>}
      {changed.length === 0 ? <p class="empty">None.</p> : (
        <table class="members">
          <thead>
            <tr>
              {["Option", "Value", "Default", "Set by"].map((title) => <th key={title} scope="col">{title}</th>)}
            </tr>
          </thead>
          <tbody>
            {changed.map((option) => (
              <tr key={option.name}>
                <td>{option.name}</td>
                <td>
                  <Text>{option.value}</Text>
                </td>
                <td>{option.default ?? ""}</td>
                <td>
                  <Text>{option.origin}</Text>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

/** All members of the cluster. */
function Members({ members }: Pick<ClusterStatus, "members">): JSX.Element {
  return (
    <section class="card" aria-labelledby="members">
      <h2 id="members">Members</h2>
      <table class="members">
        <thead>
          <tr>
            {["Member", "Service", "State", "Agents", "Tunnels"].map((title) => <th key={title} scope="col">{title}</th>)}
          </tr>
        </thead>
        <tbody>
          {members.map(({ member, service, host, error, status }) => (
            <tr key={member}>
              <td>
                <Text>{member}</Text>
              </td>
              <td>
                {service} <Text>{host}</Text>
              </td>
              <td>
                {error !== undefined
                  ? `No answer: ${visible(error)}`
                  : status?.draining
                  ? "Draining"
                  : status?.ready
                  ? "Ready"
                  : "Not ready"}
              </td>
              <td class="number">{status && count(status.now.agents)}</td>
              <td class="number">{status && count(status.now.tunnels)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function LogLevel(): JSX.Element {
  const { own, status, reload } = useSession();
  const [error, setError] = useState<string>();
  const change = async (level: LogLevelRequest["level"]) => {
    try {
      await own.post("log-level", { level } satisfies LogLevelRequest);
      setError(undefined);
      reload();
    } catch (error) {
      setError((error as Error).message);
    }
  };
  return (
    <>
      <select
        aria-label="Log level"
        value={status.logLevel}
        onChange={(event) => void change(event.currentTarget.value as typeof LEVELS[number])}
      >
        {LEVELS.map((level) => <option key={level}>{level}</option>)}
      </select>
      {error !== undefined && <span role="alert" class="error">{error}</span>}
    </>
  );
}
