// The API as typed calls: paths, parameters and answers come from the OpenAPI document by way of `npm run types`.
import type { components, paths } from "./schema";

export type Views = components["schemas"];

type Json<R> = R extends { content: { "application/json": infer T } } ? T : never;
type Answer<P extends keyof paths, M extends keyof paths[P]> = paths[P][M] extends { responses: infer R }
  ? Json<R[keyof R & (200 | 201)]>
  : never;
type Wish<P extends keyof paths, M extends keyof paths[P]> = paths[P][M] extends { requestBody?: infer B }
  ? B extends { content: { "application/json": infer T } } ? T : never
  : never;
type Value = string | number | boolean | undefined;
type Values = Record<string, Value>;
type Query = Record<string, Value | string[]>;

export class Problem extends Error {
  constructor(readonly status: number, detail: string) {
    super(detail);
  }
}

export function url(path: string, place: Values = {}, query: Query = {}): string {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(String(place[name])));
  const given = Object.entries(query)
    .filter(([, value]) => value !== undefined && value !== "")
    .flatMap(([name, value]) => (Array.isArray(value) ? value : [value]).map((each) => [name, String(each)]));
  const search = new URLSearchParams(given);
  return given.length ? `${filled}?${search}` : filled;
}

async function request(method: string, address: string, body?: unknown, headers: Record<string, string> = {}): Promise<unknown> {
  const response =
    body === undefined
      ? await send(method, address, headers)
      : await send(method, address, { "content-type": "application/json", ...headers }, JSON.stringify(body));
  return response.status === 204 ? undefined : response.json();
}

async function send(method: string, address: string, headers: Record<string, string>, body?: string | Blob): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address, { method, headers, body, signal: AbortSignal.timeout(method === "GET" ? 30_000 : 90_000) });
  } catch {
    throw new Problem(0, "The coordinator does not answer.");
  }
  if (response.status === 401 && !address.startsWith("/auth/")) window.dispatchEvent(new Event("tutti:signed-out"));
  if (!response.ok && response.status !== 304) throw new Problem(response.status, await detailOf(response));
  return response;
}

async function detailOf(response: Response): Promise<string> {
  try {
    return ((await response.json()) as Views["Problem"]).detail;
  } catch {
    return `The coordinator answered with status ${response.status}.`;
  }
}

type With<M extends string> = { [P in keyof paths]: paths[P] extends { [K in M]: { responses: unknown } } ? P : never }[keyof paths];

/** Answers with their ETags, so that what has not changed is not sent, or read, again. */
const answers = new Map<string, { etag: string; data: unknown }>();
const ANSWERS = 100;

async function getUnlessKnown(address: string): Promise<unknown> {
  const known = answers.get(address);
  const response = await send("GET", address, known ? { "if-none-match": known.etag } : {});
  if (response.status === 304 && known) return known.data;
  const data: unknown = await response.json();
  const etag = response.headers.get("etag");
  answers.delete(address);
  if (etag) answers.set(address, { etag, data });
  if (answers.size > ANSWERS) answers.delete(answers.keys().next().value!);
  return data;
}

export function get<P extends With<"get">>(path: P, place: Values = {}, query: Query = {}): Promise<Answer<P, "get" & keyof paths[P]>> {
  return getUnlessKnown(url(path, place, query)) as never;
}

export function post<P extends With<"post">>(
  path: P,
  place: Values = {},
  body?: Wish<P, "post" & keyof paths[P]>,
  key?: string,
): Promise<Answer<P, "post" & keyof paths[P]>> {
  return request("POST", url(path, place), body, key ? { "idempotency-key": key } : {}) as never;
}

/** A file as it is, where a path takes one. */
export async function upload<P extends With<"post">>(path: P, file: Blob, query: Query = {}): Promise<Answer<P, "post" & keyof paths[P]>> {
  const response = await send("POST", url(path, {}, query), { "content-type": "application/octet-stream" }, file);
  return response.json() as never;
}

export function patch<P extends With<"patch">>(
  path: P,
  place: Values,
  body: Wish<P, "patch" & keyof paths[P]>,
): Promise<Answer<P, "patch" & keyof paths[P]>> {
  return request("PATCH", url(path, place), body) as never;
}

export function put<P extends With<"put">>(path: P, place: Values, body: Wish<P, "put" & keyof paths[P]>): Promise<Answer<P, "put" & keyof paths[P]>> {
  return request("PUT", url(path, place), body) as never;
}

export function remove<P extends With<"delete">>(path: P, place: Values): Promise<void> {
  return request("DELETE", url(path, place)) as never;
}

type Page<T> = { items: T[]; next?: string | null };

/** Every item of a list, however many pages it has, from `after` on. */
export async function everything<T>(page: (after: string) => Promise<Page<T>>, after = ""): Promise<T[]> {
  const items: T[] = [];
  for (let next: string | null | undefined = after; next != null; ) {
    const found: Page<T> = await page(next);
    items.push(...found.items);
    next = found.next;
  }
  return items;
}

/** A new key under which a request counts once, however often it is sent. */
export function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
