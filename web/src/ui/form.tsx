// Forms out of JSON schema: what the coordinator says can be set is what can be set here.
import { useId } from "react";
import { Field } from "./parts";

export type Schema = {
  $ref?: string;
  type?: string;
  anyOf?: Schema[];
  enum?: (string | number)[];
  properties?: Record<string, Schema>;
  required?: string[];
  default?: unknown;
  description?: string;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  items?: Schema;
};
export type Schemas = Record<string, Schema>;
export type Registry = Record<string, Schema>;
export type Choice = { name: string; options: Record<string, unknown> };
export type Fields = Record<string, unknown>;

export function resolve(schema: Schema, all: Schemas): Schema {
  return schema.$ref ? (all[schema.$ref.split("/").at(-1)!] ?? {}) : schema;
}

export const refersTo = (schema: Schema, name: string): boolean =>
  schema.$ref?.endsWith(`/${name}`) || !!schema.anyOf?.some((option) => refersTo(option, name));

/** What the `Attributes:` of a struct's docstring say about its fields. */
export function notesOf(schema: Schema): Record<string, string> {
  const [, section = ""] = (schema.description ?? "").split(/Attributes:\n/);
  const found = [...section.matchAll(/^ +(\w+): (.*(?:\n {10,}.*)*)/gm)];
  return Object.fromEntries(found.map(([, name, text]) => [name, text!.replace(/\s+/g, " ").replaceAll("`", "")]));
}

export const inWords = (name: string): string => name.replaceAll("_", " ").replace(/\blr\b/, "learning rate").replace(/^\w/, (first) => first.toUpperCase());

/** One value: `undefined` leaves it to the coordinator. */
export function Value({ name, schema, value, set, hint, needed }: { name: string; schema: Schema; value: unknown; set: (value: unknown) => void; hint?: string; needed?: boolean }) {
  const plain = schema.anyOf?.find((option) => option.type !== "null") ?? schema;
  const standard = schema.default;
  if (plain.type === "boolean") {
    return (
      <label className="check">
        <input type="checkbox" checked={Boolean(value ?? standard)} onChange={(event) => set(event.target.checked)} />
        <span>
          {inWords(name)}
          {hint && <small className="quiet">{hint}</small>}
        </span>
      </label>
    );
  }
  const placeholder = standard == null ? "" : Array.isArray(standard) ? standard.join(", ") : String(standard);
  return (
    <Field label={inWords(name)} hint={hint}>
      {(id, described) =>
        plain.enum ? (
          <select id={id} aria-describedby={described} value={String(value ?? standard ?? "")} onChange={(event) => set(event.target.value)}>
            {plain.enum.map((option) => (
              <option key={option}>{option}</option>
            ))}
          </select>
        ) : (
          <input
            id={id}
            aria-describedby={described}
            required={needed}
            placeholder={placeholder || (needed ? "" : "automatic")}
            inputMode={plain.type === "integer" ? "numeric" : plain.type === "number" ? "decimal" : undefined}
            value={value == null ? "" : Array.isArray(value) ? value.join(", ") : String(value)}
            onChange={(event) => set(read(plain, event.target.value))}
          />
        )
      }
    </Field>
  );
}

/** What was typed, as the schema wants it; text that is no number stays text, and the coordinator says what is wrong. */
function read(schema: Schema, text: string): unknown {
  if (text.trim() === "") return undefined;
  if (schema.type === "integer" || schema.type === "number") return /^-?[\d.]+(e-?\d+)?$/i.test(text.trim()) && !text.endsWith(".") ? Number(text) : text;
  if (schema.type === "array") return text.split(/[,x\s]+/).filter(Boolean).map(Number);
  return text;
}

/** A name from a registry with its options. */
export function ChoiceField({ label, registry, value, set, optional }: { label: string; registry: Registry; value: Choice | undefined; set: (value: Choice | undefined) => void; optional?: string }) {
  const id = useId();
  const schema = value && registry[value.name];
  return (
    <div className="choice">
      <div className="field">
        <label htmlFor={id}>{label}</label>
        <select id={id} value={value?.name ?? ""} onChange={(event) => set(event.target.value ? { name: event.target.value, options: {} } : undefined)}>
          {optional !== undefined && <option value="">{optional}</option>}
          {Object.keys(registry).map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
        {schema?.description && <small className="quiet">{schema.description.replaceAll("`", "")}</small>}
      </div>
      {value && schema?.properties && Object.keys(schema.properties).length > 0 && (
        <div className="options">
          {Object.entries(schema.properties).map(([name, option]) => (
            <Value
              key={name}
              name={name}
              schema={option}
              needed={schema.required?.includes(name)}
              value={value.options[name]}
              set={(given) => set({ ...value, options: without({ ...value.options, [name]: given }) })}
            />
          ))}
        </div>
      )}
    </div>
  );
}

/** The fields of a struct, but for those that are handled elsewhere. */
export function StructFields({ schema, value, set, but = [] }: { schema: Schema; value: Fields; set: (value: Fields) => void; but?: string[] }) {
  const notes = notesOf(schema);
  return (
    <div className="fields">
      {Object.entries(schema.properties ?? {})
        .filter(([name]) => !but.includes(name))
        .map(([name, field]) => (
          <Value key={name} name={name} schema={field} hint={notes[name]} value={value[name]} set={(given) => set(without({ ...value, [name]: given }))} />
        ))}
    </div>
  );
}

/** Without what is left to the coordinator. */
export function without(fields: Fields): Fields {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}
