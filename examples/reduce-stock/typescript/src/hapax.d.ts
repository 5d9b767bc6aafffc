// The contract hapax:handler@0.1.0, as componentize-qjs hands it to JavaScript. What differs from other languages:
// - 64-bit integers are numbers, exact up to 2^53 only; a BigInt is refused. Bind larger ones as decimals.
// - A call that answers with an error throws an Error whose `payload` is the error of the contract.
// - A handler fails by throwing a Failure. Any other exception is a trap, which is a failed attempt, too.

declare module "hapax:handler/types@0.1.0" {
  export type HeaderValue =
    | { tag: "null" }
    | { tag: "text" | "decimal" | "json"; val: string }
    | { tag: "integer" | "float" | "timestamp"; val: number }
    | { tag: "boolean"; val: boolean }
    | { tag: "bytes"; val: Uint8Array };

  export interface Properties {
    contentType: string | null;
    contentEncoding: string | null;
    headers: [string, HeaderValue][];
    deliveryMode: number | null;
    priority: number | null;
    correlationId: string | null;
    replyTo: string | null;
    expiration: string | null;
    messageId: string | null;
    timestamp: number | null;
    type: string | null;
    userId: string | null;
    appId: string | null;
  }

  export interface Message {
    id: string;
    exchange: string;
    routingKey: string;
    properties: Properties;
    body: Uint8Array;
  }

  export type Advice = { tag: "by-policy" } | { tag: "after-ms"; val: number } | { tag: "never" };

  export interface Failure {
    advice: Advice;
    code: string | null;
    message: string;
    detail: string | null;
  }

  export interface Death {
    reason: string;
    attempts: number;
    failure: Failure | null;
  }
}

declare module "hapax:handler/context@0.1.0" {
  const context: {
    consumer(): string;
    queue(): string;
    attempt(): number;
    maxAttempts(): number;
    remainingMs(): number;
    traceparent(): string | null;
    tracestate(): string | null;
    idempotencyKey(purpose: string): string;
    config(key: string): string | null;
  };
  export default context;
}

declare module "hapax:handler/sql@0.1.0" {
  export type Value =
    | { tag: "null" }
    | { tag: "boolean"; val: boolean }
    | { tag: "int64" | "float64"; val: number }
    | { tag: "text" | "decimal" | "uuid" | "date" | "time" | "timestamp" | "timestamptz" | "json"; val: string }
    | { tag: "blob"; val: Uint8Array }
    | { tag: "other"; val: [string, string] };

  export interface Executed {
    rowsAffected: number;
    lastInsertId: number | null;
  }

  export interface ResultSet {
    columns: string[];
    rows: Value[][];
  }

  export interface SqlError {
    kind: "denied" | "invalid" | "constraint" | "transient" | "too-large" | "poisoned" | "other";
    code: string | null;
    constraint: string | null;
    message: string;
  }

  const sql: {
    execute(statement: string, params: Value[]): Executed;
    executeMany(statement: string, params: Value[][]): number;
    query(statement: string, params: Value[]): ResultSet;
  };
  export default sql;
}

declare module "hapax:handler/outbox@0.1.0" {
  import type { Properties } from "hapax:handler/types@0.1.0";

  const outbox: {
    publish(exchange: string, routingKey: string, properties: Properties, body: Uint8Array): string;
  };
  export default outbox;
}

// What QuickJS has and the type library of TypeScript does not know yet: the text that a number was read from.
interface JSON {
  parse(text: string, reviver: (key: string, value: unknown, context: { source?: string }) => unknown): unknown;
}
