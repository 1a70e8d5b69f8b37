// Who is here, and which page they see.
import { useEffect, useId, useState } from "react";
import { get, post } from "./api/client";
import { useResource, useStatus } from "./data";
import { live, useLink } from "./live";
import { Blockchain, hasChain, readChain } from "./pages/blockchain";
import { Home } from "./pages/home";
import { Join } from "./pages/join";
import { Job } from "./pages/job";
import { Ledger } from "./pages/ledger";
import { Market } from "./pages/market";
import { MaintenanceBanner } from "./pages/maintenance";
import { Metrics } from "./pages/metrics";
import { NewJob } from "./pages/new-job";
import { Nodes } from "./pages/nodes";
import { Settings } from "./pages/settings";
import { SignIn, Waiting } from "./pages/sign-in";
import { Users } from "./pages/users";
import { Link, usePath } from "./router";
import { Icon, Logo, type IconName } from "./ui/icons";
import { Empty, Trouble, may, type Session } from "./ui/parts";

const REFRESH_MS = 3_600_000;

type Place = { path: string; label: string; icon: IconName; role: "viewer" | "operator" | "admin" };

const PLACES: Place[] = [
  { path: "/", label: "Home", icon: "home", role: "viewer" },
  { path: "/nodes", label: "Nodes", icon: "nodes", role: "viewer" },
  { path: "/new", label: "New job", icon: "plus", role: "operator" },
  { path: "/join", label: "Join", icon: "link", role: "operator" },
  { path: "/metrics", label: "Metrics", icon: "chart", role: "viewer" },
  { path: "/ledger", label: "Ledger", icon: "ledger", role: "viewer" },
  { path: "/blockchain", label: "Blockchain", icon: "chain", role: "viewer" },
  { path: "/market", label: "Market", icon: "market", role: "viewer" },
  { path: "/users", label: "Users", icon: "users", role: "admin" },
  { path: "/settings", label: "Settings", icon: "settings", role: "viewer" },
];

export function App() {
  const session = useResource("session", () => get("/auth/session"));
  const path = usePath();
  const { reload } = session;
  useEffect(() => {
    window.addEventListener("tutti:signed-out", reload);
    return () => window.removeEventListener("tutti:signed-out", reload);
  }, [reload]);
  if (session.problem) return <main className="alone">{<Trouble problem={session.problem} retry={reload} />}</main>;
  if (!session.data) return null;
  const it = session.data;
  if (!it.name) return <SignIn session={it} done={reload} />;
  if (!may(it, "viewer")) return <Waiting session={it} done={reload} />;
  return <Inside session={it} path={path} reload={reload} />;
}

function Inside({ session, path, reload }: { session: Session; path: string; reload: () => void }) {
  useEffect(() => {
    live.start();
    return () => live.stop();
  }, []);
  const chain = useResource("has a chain", readChain);
  const status = useStatus();
  const account = session.account?.name;
  useEffect(() => {
    if (!account) return;
    const timer = window.setInterval(() => post("/auth/refresh", {}, {}).catch(reload), REFRESH_MS);
    return () => window.clearInterval(timer);
  }, [account, reload]);
  return (
    <div className="frame">
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <nav aria-label="Pages">
        <Link to="/" className="brand">
          <Logo /> Tutti
        </Link>
        <Places places={PLACES.filter((place) => may(session, place.role) && (place.path !== "/blockchain" || hasChain(chain.data)))} path={path} />
        <Connection />
      </nav>
      <main id="main" tabIndex={-1} key={path} ref={takeFocus}>
        <MaintenanceBanner status={status} session={session} />
        <Page path={path} session={session} reload={reload} />
      </main>
    </div>
  );
}

const IN_BAR = 4;

/** All in a column; on a phone a bar with the first few, and the others above it after "More". */
function Places({ places, path }: { places: Place[]; path: string }) {
  const [open, setOpen] = useState(false);
  const id = useId();
  const rest = places.slice(IN_BAR);
  const item = (place: Place) => (
    <li key={place.path} onClick={() => setOpen(false)}>
      <Link to={place.path} aria-current={path === place.path ? "page" : undefined}>
        <Icon name={place.icon} />
        <span>{place.label}</span>
      </Link>
    </li>
  );
  return (
    <div className="places" onKeyDown={(event) => event.key === "Escape" && setOpen(false)}>
      <ul>
        {places.slice(0, IN_BAR).map(item)}
        <li className="more">
          <button className={rest.some((place) => place.path === path) ? "here" : undefined} aria-expanded={open} aria-controls={id} onClick={() => setOpen(!open)}>
            <Icon name="more" />
            <span>More</span>
          </button>
        </li>
      </ul>
      <ul id={id} className={open ? "rest open" : "rest"}>
        {rest.map(item)}
      </ul>
    </div>
  );
}

/** A new page takes the focus if the link that led to it went away, or is hidden now. */
function takeFocus(main: HTMLElement | null): void {
  if (!main || history.state !== "followed") return;
  const held = document.activeElement;
  if (!held || held === document.body || !held.checkVisibility()) main.focus({ preventScroll: true });
}

function Page({ path, session, reload }: { path: string; session: Session; reload: () => void }) {
  const [, first, second] = path.split("/");
  const place = PLACES.find((place) => place.path === `/${first}`);
  useEffect(() => {
    document.title = second ? `${decodeURIComponent(second)} · Tutti` : place && first ? `${place.label} · Tutti` : "Tutti";
  }, [first, second, place]);
  if (first === "job" && second) return <Job id={decodeURIComponent(second)} session={session} />;
  if (!place || second || !may(session, place.role)) {
    return (
      <>
        <h1>Not here</h1>
        <Empty>
          There is no such page. <Link to="/">Home</Link>
        </Empty>
      </>
    );
  }
  switch (place.path) {
    case "/nodes":
      return <Nodes session={session} />;
    case "/new":
      return <NewJob />;
    case "/join":
      return <Join />;
    case "/metrics":
      return <Metrics />;
    case "/ledger":
      return <Ledger session={session} />;
    case "/blockchain":
      return <Blockchain />;
    case "/market":
      return <Market session={session} />;
    case "/users":
      return <Users session={session} />;
    case "/settings":
      return <Settings session={session} reload={reload} />;
    default:
      return <Home session={session} />;
  }
}

const SAID = { connecting: "Connecting…", connected: "Live", reconnecting: "Reconnecting…" };

function Connection() {
  const link = useLink();
  return (
    <p className={`connection ${link}`} role="status">
      {SAID[link]}
    </p>
  );
}
