// Small things that every page is made of.
import { useEffect, useId, useRef, useState, type ReactNode } from "react";
import { Problem, type Views } from "../api/client";
import type { Resource } from "../data";

export function Badge({ status }: { status: string }) {
  return <span className={`badge ${status.replace(" ", "-")}`}>{status}</span>;
}

/** A share as a bar; `label` says what of, for those who do not see it. */
export function Bar({ share, label }: { share: number; label: string }) {
  const value = Math.max(0, Math.min(1, share));
  return (
    <span className="bar" role="progressbar" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(value * 100)}>
      <span style={{ width: `${value * 100}%` }} />
    </span>
  );
}

export function Figure({ label, value, hint }: { label: string; value: ReactNode; hint?: string }) {
  return (
    <div className="figure">
      <dt>{label}</dt>
      <dd title={hint}>{value}</dd>
    </div>
  );
}

export function Card({ title, action, children, className = "" }: { title?: string; action?: ReactNode; children: ReactNode; className?: string }) {
  const id = useId();
  return (
    <section className={`card ${className}`} aria-labelledby={title ? id : undefined}>
      {title && (
        <header>
          <h2 id={id}>{title}</h2>
          {action}
        </header>
      )}
      {children}
    </section>
  );
}

/** What came back, or that it is on its way, or why it did not come. */
export function Loaded<T>({ from, children }: { from: Resource<T>; children: (data: T) => ReactNode }) {
  if (from.data !== undefined) {
    return (
      <>
        {from.problem && <Trouble problem={from.problem} retry={from.reload} />}
        {children(from.data)}
      </>
    );
  }
  if (from.problem) return <Trouble problem={from.problem} retry={from.reload} />;
  return (
    <p className="quiet" role="status">
      Loading…
    </p>
  );
}

export function Trouble({ problem, retry }: { problem: Error; retry?: () => void }) {
  return (
    <div className="trouble" role="alert">
      <span>{problem.message}</span>
      {retry && <button onClick={retry}>Try again</button>}
    </div>
  );
}

export function Empty({ children }: { children: ReactNode }) {
  return <p className="empty">{children}</p>;
}

/** Runs something that may be refused, once at a time. */
export function useDoing(): { busy: boolean; problem: Error | undefined; run: (work: () => Promise<unknown>) => Promise<boolean> } {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Error>();
  const running = useRef(false);
  const run = async (work: () => Promise<unknown>) => {
    if (running.current) return false;
    running.current = true;
    setBusy(true);
    setProblem(undefined);
    try {
      await work();
      return true;
    } catch (error) {
      setProblem(error instanceof Error ? error : new Problem(0, String(error)));
      return false;
    } finally {
      running.current = false;
      setBusy(false);
    }
  };
  return { busy, problem, run };
}

export function Copied({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  const field = useRef<HTMLElement>(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Browsers offer the clipboard to secure origins only; marking the text is the next best thing.
      getSelection()?.selectAllChildren(field.current!);
      return;
    }
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return (
    <div className="copied">
      <code ref={field} tabIndex={0}>
        {text}
      </code>
      <button onClick={copy} aria-live="polite">
        {done ? "Copied" : label}
      </button>
    </div>
  );
}

export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog ref={dialog} onClose={onClose} onClick={(event) => event.target === dialog.current && onClose()} aria-labelledby={id}>
      <header>
        <h2 id={id}>{title}</h2>
        <button className="plain" onClick={onClose} aria-label="Close">
          ✕
        </button>
      </header>
      {children}
    </dialog>
  );
}

/** A button that asks once more before it does what cannot be undone. */
export function Sure({ label, question, act }: { label: string; question: string; act: () => Promise<unknown> }) {
  const [asking, setAsking] = useState(false);
  const { busy, problem, run } = useDoing();
  return (
    <>
      <button className="danger" onClick={() => setAsking(true)}>
        {label}
      </button>
      {asking && (
        <Dialog title={`${label}?`} onClose={() => setAsking(false)}>
          <p>{question}</p>
          {problem && <Trouble problem={problem} />}
          <footer>
            <button onClick={() => setAsking(false)}>Cancel</button>
            <button className="danger" disabled={busy} onClick={async () => (await run(act)) && setAsking(false)}>
              {label}
            </button>
          </footer>
        </Dialog>
      )}
    </>
  );
}

export function Field({ label, hint, children }: { label: string; hint?: string; children: (id: string, described?: string) => ReactNode }) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children(id, hint ? `${id}-hint` : undefined)}
      {hint && (
        <small id={`${id}-hint`} className="quiet">
          {hint}
        </small>
      )}
    </div>
  );
}

export type Session = Views["SessionView"];

const RANKS = ["", "viewer", "operator", "admin"];
export const may = (session: Session, role: "viewer" | "operator" | "admin"): boolean => RANKS.indexOf(session.role) >= RANKS.indexOf(role);
