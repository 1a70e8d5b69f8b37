// What happened, in words.
import type { Views } from "../api/client";
import type { Event } from "../live";
import { plural, percent } from "./format";

/** What is worth telling on its own: a round's single steps are not. */
export const isNews = (event: Event): boolean => !["UpdateAccepted", "RoundOpened", "ContributionsScored"].includes(event.type);

/** The job that an event is about, if it is about one. */
export function jobOf(event: Event): string | undefined {
  if (event.stream.startsWith("job:")) return event.stream.slice(4);
  return event.stream.startsWith("reward") ? String(event.data.job) : undefined;
}

type Data = {
  round?: number;
  task?: string;
  node?: string;
  by?: string;
  reason?: string;
  parameters?: number;
  cohort?: string[];
  metrics?: { accuracy?: number; loss?: number };
  uses?: number;
  examples?: number;
  dataset?: string;
};

export function inWords(event: Event): string {
  const it = event.data as Data;
  const round = `round ${it.round}`;
  switch (event.type) {
    case "JobSubmitted":
      return `was submitted by ${it.by || "somebody"}`;
    case "JobInitialised":
      return `has its initial model: ${plural(it.parameters ?? 0, "parameter")}`;
    case "RoundOpened":
      return `opened ${it.task === "evaluate" ? "the final evaluation" : round} with ${plural((it.cohort ?? []).length, "node")}`;
    case "UpdateAccepted":
      return `took the update of ${it.node} in ${round}`;
    case "UpdateRefused":
      return `refused the update of ${it.node} in ${round}: ${it.reason}`;
    case "UpdateLost":
      return `lost the update of ${it.node} in ${round}: ${it.reason}`;
    case "NodeDropped":
      return `goes on without ${it.node} in ${round}: ${it.reason}`;
    case "RoundExtended":
      return `gave ${round} more time: ${it.reason}`;
    case "RoundClosed":
      return `closed ${round}: ${it.reason}`;
    case "RoundFailed":
      return `failed ${round}: ${it.reason}`;
    case "ModelEvaluated": {
      const { accuracy, loss } = it.metrics ?? {};
      const result = accuracy !== undefined ? `accuracy ${percent(accuracy)}` : loss !== undefined ? `loss ${loss.toFixed(4)}` : "measured";
      return `model of ${round}: ${result}`;
    }
    case "ContributionsScored":
      return `has the contributions to ${round} scored`;
    case "RewardsSettled":
      return "has paid for all rounds";
    case "JobPaused":
      return `was paused: ${it.reason}`;
    case "JobResumed":
      return "was resumed";
    case "JobStopped":
      return `was stopped: ${it.reason}`;
    case "JobCompleted":
      return `is complete: ${it.reason}`;
    case "JobFailed":
      return `failed: ${it.reason}`;
    case "InviteIssued":
      return `${it.by || "Somebody"} made a join link for ${plural(it.uses ?? 1, "node")}`;
    case "NodeJoined":
      return `${it.node} joined`;
    case "NodeRemoved":
      return `${it.node} was removed: ${it.reason}`;
    case "NodeConnected":
      return `${it.node} connected with ${plural(it.examples ?? 0, "example")} of ${it.dataset}`;
    case "NodeDisconnected":
      return `${it.node} disconnected: ${it.reason}`;
    case "NodeDrained":
      return `${it.node} is given no more work`;
    case "NodeUndrained":
      return `${it.node} is given work again`;
    case "NodeTurnedAway":
      return `${it.node} was turned away: ${it.reason}`;
    case "CoordinatorStarted":
      return "The coordinator started";
    default:
      return event.type.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  }
}

/** What is happening now, in a sentence. */
export function rightNow(status: Views["StatusView"], jobs: Views["JobView"][]): string {
  const nodes = `${plural(status.nodes_connected, "node")} ${status.nodes_connected === 1 ? "is" : "are"} connected`;
  const open = jobs.filter((job) => job.open_round);
  const first = open[0]?.open_round;
  if (open[0] && first) {
    const doing = first.task === "train" ? `is in round ${first.round} of ${open[0].rounds}` : "measures its final model";
    const more = open.length > 1 ? ` ${plural(open.length - 1, "more job runs", "more jobs run")}.` : "";
    return `${open[0].name} ${doing}: ${first.accepted} of ${first.wanted} updates are in.${more} ${nodes}.`;
  }
  const waiting = jobs.find((job) => job.reason && !["completed", "stopped", "failed"].includes(job.status));
  if (waiting) return `${waiting.name} ${waiting.status.startsWith("pa") ? `is ${waiting.status}: ` : ""}${waiting.reason}. ${nodes}.`;
  if (!status.nodes) return "No node has joined yet. Make a join link, and run it where the data are.";
  return `Nothing is being trained. ${nodes}.`;
}
