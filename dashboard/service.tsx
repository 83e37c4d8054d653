// The service itself: its state, and the actions on the whole of it.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { LogLevelRequest } from "../shared/service/api/types.ts";
import { useIsOperator, useSession } from "./api.ts";
import { ActionButton } from "./dialog.tsx";
import { Facts, Text, Time } from "./fields.tsx";
import { bytes, duration } from "./format.ts";

const LEVELS: readonly LogLevelRequest["level"][] = ["debug", "info", "warn", "error"];

export function Service(): JSX.Element {
  const { api, status, reload } = useSession();
  const isOperator = useIsOperator();
  const { problems } = status;
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
            ["Ready", status.ready ? "yes" : `no: ${Object.values(problems).join(", ")}`],
            ["Memory", bytes(status.now.memory)],
            ["Your role", status.role],
            ["Log level", isOperator && status.logLevel !== undefined ? <LogLevel key="level" /> : status.logLevel],
          ]}
        />
      </section>
      {isOperator && (
        <div class="buttons">
          <ActionButton title="Reload the files" isHarmless run={() => api.post("reload", {})} done={reload}>
            <p>Certificates, keys, tokens and revocation lists are read again, as after SIGHUP.</p>
          </ActionButton>
          <ActionButton title="Drain and stop" run={() => api.post("drain", {})} done={reload}>
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

function LogLevel(): JSX.Element {
  const { api, status, reload } = useSession();
  const [error, setError] = useState<string>();
  const change = async (level: LogLevelRequest["level"]) => {
    try {
      await api.post("log-level", { level } satisfies LogLevelRequest);
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
