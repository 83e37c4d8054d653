// Small parts that several views share.
import type { ComponentChildren, JSX } from "preact";
import type { TunnelState } from "../shared/service/api/types.ts";
import { dateTime, timeLeft, timeOfDay, visible } from "./format.ts";
import { href, replaceRoute, type Route } from "./route.ts";

/** Text from a peer. The whole of it is in the tooltip where a table cuts it off. */
export function Text({ children }: { children: string | undefined }): JSX.Element {
  const text = visible(children ?? "");
  return text === "" ? <span class="none">–</span> : <span class="text" title={text}>{text}</span>;
}

export function Time({ children }: { children: string | undefined }): JSX.Element {
  return children === undefined ? <span class="none">–</span> : <time dateTime={children}>{dateTime(Date.parse(children))}</time>;
}

/** The time alone, of what happened lately. */
export function TimeOfDay({ children }: { children: string }): JSX.Element {
  return <time dateTime={children}>{timeOfDay(Date.parse(children))}</time>;
}

export function TunnelLink({ id, children }: { id: string; children: string | undefined }): JSX.Element {
  return (
    <a href={href(["tunnels", id])}>
      <Text>{children || id}</Text>
    </a>
  );
}

export function AgentLink({ id }: { id: string | undefined }): JSX.Element {
  return id
    ? (
      <a href={href(["agents", id])}>
        <Text>{id}</Text>
      </a>
    )
    : <span class="none">–</span>;
}

/** A state in a word, which a color stresses. */
export function Badge({ state }: { state: string }): JSX.Element {
  return <span class={`badge ${state}`}>{state}</span>;
}

export function Direction({ state }: { state: TunnelState["sending"] }): JSX.Element {
  return state === undefined ? <span class="none">–</span> : <Badge state={state} />;
}

/** Names and values. A value of `undefined` is left out. */
export function Facts({ facts }: { facts: readonly (readonly [name: string, value: ComponentChildren | undefined])[] }): JSX.Element {
  return (
    <dl class="facts">
      {facts.filter(([, value]) => value !== undefined).map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

interface ChoiceProps {
  readonly route: Route;
  readonly label: string;
  /** The parameter of the route. */
  readonly name: string;
  /** Values and titles; the first is the default. */
  readonly choices: readonly (readonly [value: string, title: string])[];
}

/** A filter of the route's query. */
export function Choice({ route, label, name, choices }: ChoiceProps): JSX.Element {
  const change = (value: string) =>
    replaceRoute(href(route.path, { ...Object.fromEntries(route.query), [name]: value === choices[0]![0] ? "" : value }));
  return (
    <select
      aria-label={label}
      value={route.query.get(name) ?? choices[0]![0]}
      onChange={(event) => change(event.currentTarget.value)}
    >
      {choices.map(([value, title]) => <option key={value} value={value}>{title}</option>)}
    </select>
  );
}

/** Seconds until the end of the token. */
const EXPIRIES = [["", "All tokens"], [String(7 * 86_400), "Expiring within a week"]] as const;

/** A filter by the expiry of tokens. */
export function ExpiryChoice({ route }: { route: Route }): JSX.Element {
  return <Choice route={route} label="Tokens" name="expires" choices={EXPIRIES} />;
}

/** When a token expires. */
export function Expiry({ at }: { at: string }): JSX.Element {
  return (
    <span>
      <Time>{at}</Time> ({timeLeft(at)})
    </span>
  );
}

/** Filters that links have set, such as the client's address; each can be removed. */
export function Filters({ route, names }: { route: Route; names: readonly string[] }): JSX.Element {
  const active = names.filter((name) => route.query.get(name));
  const remove = (removed: string) =>
    replaceRoute(href(route.path, Object.fromEntries([...route.query].filter(([name]) => name !== removed))));
  return (
    <>
      {active.map((name) => (
        <button
          type="button"
          key={name}
          class="filter"
          onClick={() => remove(name)}
          aria-label={`Remove the filter ${name}`}
        >
          {name}: {visible(route.query.get(name)!)} <span aria-hidden="true">×</span>
        </button>
      ))}
    </>
  );
}
