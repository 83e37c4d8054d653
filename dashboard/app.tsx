// The frame of the page: login, navigation, and the view that the fragment names.
import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { ClusterStatus, Status } from "../shared/service/api/types.ts";
import { AgentPage } from "./agent.tsx";
import { Agents } from "./agents.tsx";
import { Api, endSession, findSignIn, type Session, SessionContext, type SignIn } from "./api.ts";
import { Failures } from "./failures.tsx";
import { visible } from "./format.ts";
import { Login } from "./login.tsx";
import { Overview } from "./overview.tsx";
import { usePolled } from "./poll.ts";
import { href, type Route, useRoute } from "./route.ts";
import { Service } from "./service.tsx";
import { chooseTheme, useTheme } from "./theme.ts";
import { TunnelPage } from "./tunnel.tsx";
import { Tunnels } from "./tunnels.tsx";

/** The token is kept until the tab is closed. */
const TOKEN = "reverse-http token";

export function App(): JSX.Element {
  const [token, setToken] = useState(() => sessionStorage.getItem(TOKEN));
  const [signIn, setSignIn] = useState<SignIn>();
  const [refusal, setRefusal] = useState<string>();
  useEffect(() => {
    if (token === null) void findSignIn().then(setSignIn); // never rejects
  }, []);
  const isSession = token === null && signIn?.isSession === true;
  const signOut = (message?: string) => {
    if (isSession) void endSession(); // never rejects
    sessionStorage.removeItem(TOKEN);
    setRefusal(message);
    setToken(null);
    setSignIn({ ...signIn, isSession: false });
    if (signIn === undefined) void findSignIn().then((found) => setSignIn({ ...found, isSession: false })); // never rejects
  };
  const useToken = (token: string) => {
    sessionStorage.setItem(TOKEN, token);
    setRefusal(undefined);
    setToken(token);
  };
  const api = useMemo(() => token !== null || isSession ? new Api(token ?? undefined, signOut) : undefined, [token, isSession]);
  if (api !== undefined) return <SignedIn key={token ?? ""} api={api} signOut={() => signOut()} />;
  if (signIn === undefined) return <main class="wait" />;
  return <Login refusal={refusal} signIn={useToken} issuer={signIn.issuer} />;
}

/** Views that show numbers of the status load it every two seconds; for the others it has the state of the service in the header. */
const [INTERVAL_MS, SLOW_INTERVAL_MS] = [2_000, 10_000];

function SignedIn({ api: own, signOut }: { api: Api; signOut: () => void }): JSX.Element {
  const [isWide, setWide] = useState(false);
  const api = useMemo(() => isWide ? own.ofCluster() : own, [own, isWide]);
  const route = useRoute();
  const [view] = route.path;
  const { value: status, error, reload } = usePolled((signal) => api.get<Status | ClusterStatus>("status", {}, signal), {
    intervalMs: view === undefined || view === "service" ? INTERVAL_MS : SLOW_INTERVAL_MS,
    subject: "status",
    part: String(isWide),
  });
  useEffect(() => setWide(status?.member !== undefined), [status?.member]); // a cluster is shown as a whole at first
  useEffect(() => {
    if (status) document.title = `${status.service} ${visible(status.host)} – reverse-http`;
  }, [status?.service, status?.host]);
  useEffect(() => {
    if (route.path.length > 0) document.getElementById("main")?.focus({ preventScroll: true });
  }, [route.path.join("/")]);
  if (status === undefined) {
    return (
      <main class="wait">
        {error ? <p role="alert" class="error">{error.message}</p> : <p role="status">Loading…</p>}
        <button type="button" onClick={signOut}>Sign out</button>
      </main>
    );
  }
  const session: Session = { api, own, status, isWide, reload };
  return (
    <SessionContext.Provider value={session}>
      <a class="skip" href="#main" onClick={focusMain}>Skip to the content</a>
      <Header status={status} route={route} error={error} signOut={signOut} isWide={isWide} setWide={setWide} />
      {isWide && <Silent status={status} />}
      <main id="main" tabIndex={-1}>
        <View route={route} />
      </main>
    </SessionContext.Provider>
  );
}

function focusMain(event: Event): void {
  event.preventDefault(); // the fragment names the view
  document.getElementById("main")!.focus();
}

interface HeaderProps {
  readonly status: Status;
  readonly route: Route;
  readonly error: Error | undefined;
  readonly signOut: () => void;
  readonly isWide: boolean;
  readonly setWide: (isWide: boolean) => void;
}

/** Says which members have not answered: the page lacks what they have. */
function Silent({ status }: { status: Status | ClusterStatus }): JSX.Element {
  const silent = ("members" in status ? status.members : []).filter(({ error }) => error !== undefined);
  return (
    <div role="alert" class="silent">
      {silent.map(({ member, error }) => <p key={member} class="error">{visible(member)} did not answer: {visible(error!)}</p>)}
    </div>
  );
}

function Header({ status, route, error, signOut, isWide, setWide }: HeaderProps): JSX.Element {
  const theme = useTheme();
  const state = error ? "lost" : status.draining ? "draining" : status.ready ? "ready" : "unready";
  const words = { lost: `No answer: ${error?.message}`, draining: "Draining", ready: "Ready", unready: "Not ready" }[state];
  const views: [path: string[], title: string][] = [
    [[], "Overview"],
    [["agents"], agentsTitle(status)],
    [["tunnels"], "Tunnels"],
    [["failures"], "Failures"],
    [["service"], "Service"],
  ];
  return (
    <header>
      <div class="brand">
        <strong>reverse-http</strong> {status.service} <span class="host">{visible(status.host)}</span>
        <span role="status" class={`state ${state}`}>{words}</span>
      </div>
      <nav aria-label="Views">
        {views.map(([path, title]) => (
          <a key={title} href={href(path)} aria-current={(route.path[0] ?? "") === (path[0] ?? "") ? "page" : undefined}>{title}</a>
        ))}
      </nav>
      <div class="tools">
        {status.member !== undefined && <button type="button" aria-pressed={isWide} onClick={() => setWide(!isWide)}>All members</button>}
        <button type="button" aria-pressed={theme === "dark"} onClick={() => chooseTheme(theme === "dark" ? "light" : "dark")}>Dark</button>
        <button type="button" onClick={signOut}>Sign out</button>
      </div>
    </header>
  );
}

/** An agent lists its connections to proxies where the others list agents. */
function agentsTitle({ service }: Status): string {
  return service === "agent" ? "Proxies" : "Agents";
}

function View({ route }: { route: Route }): JSX.Element {
  const [view, id] = route.path;
  switch (view) {
    case undefined:
      return <Overview />;
    case "agents":
      return id === undefined ? <Agents route={route} /> : <AgentPage key={id} id={id} route={route} />;
    case "tunnels":
      return id === undefined ? <Tunnels route={route} /> : <TunnelPage key={id} id={id} />;
    case "failures":
      return <Failures route={route} />;
    case "service":
      return <Service />;
    default:
      return <p>There is no such view.</p>;
  }
}
