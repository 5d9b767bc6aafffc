// The reduce-stock handler on raw bindings: the same as ../src/lib.rs, in TypeScript.

import context from "hapax:handler/context@0.1.0";
import outbox from "hapax:handler/outbox@0.1.0";
import sql, { type Value } from "hapax:handler/sql@0.1.0";
import type { Advice, Death, Failure, Message } from "hapax:handler/types@0.1.0";

interface Order {
  // Digits: a goods id has up to 19, and a number is exact up to 2^53 only.
  goodsId: string;
  quantity: number;
}

export const handler = {
  handle(message: Message): void {
    failing(() => {
      const { goodsId, quantity } = readOrder(message);
      const reduced = sql.execute(
        "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
        [int(quantity), exact(goodsId), int(quantity)],
      );
      if (reduced.rowsAffected === 0) {
        throw refusal(goodsId, quantity);
      }
      failSometimes(message.id);
      const told = `{"order":${JSON.stringify(message.id)},"goods_id":${goodsId},"quantity":${quantity}}`;
      publish(context.config("exchange") ?? "shop", "stock.reduced", told);
    });
  },
};

export const compensation = {
  compensate(message: Message, death: Death): void {
    // A body that the handler could not read had no effect, so there is nothing to undo.
    if (death.failure?.code === "undecodable") return;
    failing(() => {
      const { goodsId, quantity } = readOrder(message);
      sql.execute("INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES (?, ?, ?, ?)", [
        text(message.id),
        exact(goodsId),
        int(quantity),
        text(death.failure?.code ?? death.reason),
      ]);
    });
  },
};

// JSON with the id as a number or a string, or the bare id that the classic producers send.
function readOrder(message: Message): Order {
  let body: string;
  try {
    body = utf8(message.body);
  } catch {
    throw failure({ tag: "never" }, "undecodable", "the body is not UTF-8");
  }
  if (/^\d+$/.test(body.trim())) {
    return { goodsId: goodsIdOf(body.trim()), quantity: 1 };
  }
  let json: unknown;
  try {
    json = JSON.parse(body, (key, value, { source }) => (key === "goods_id" && typeof value === "number" ? source : value));
  } catch (error) {
    throw undecodable(String(error));
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw undecodable("it is no object");
  }
  const { goods_id: goodsId, quantity = 1 } = json as { goods_id?: unknown; quantity?: unknown };
  if (typeof quantity !== "number" || !Number.isSafeInteger(quantity) || quantity < 1) {
    throw undecodable(`quantity is ${JSON.stringify(quantity)}; expected at least 1`);
  }
  return { goodsId: goodsIdOf(goodsId), quantity };
}

function goodsIdOf(value: unknown): string {
  if (typeof value !== "string" || !/^-?\d+$/.test(value) || BigInt.asIntN(64, BigInt(value)) !== BigInt(value)) {
    throw undecodable(`goods_id is ${JSON.stringify(value)}; expected a 64-bit integer`);
  }
  return BigInt(value).toString();
}

// Why no row matched: the conditional UPDATE cannot tell, and only this rare case asks.
function refusal(goodsId: string, quantity: number): Failure {
  const { rows } = sql.query("SELECT quantity FROM stock WHERE goods_id = ?", [exact(goodsId)]);
  const left = rows[0]?.[0];
  if (left === undefined) {
    return failure({ tag: "never" }, "unknown-goods", `there are no goods ${goodsId}`);
  }
  const inStock = "val" in left ? String(left.val) : "none";
  return failure({ tag: "never" }, "out-of-stock", `goods ${goodsId}: ${quantity} ordered, ${inStock} in stock`);
}

// For demonstrations: this share of attempts fails after the UPDATE, to show that the UPDATE is rolled back.
function failSometimes(messageId: string): void {
  const config = context.config("fail_after_update");
  if (config === null) return;
  const share = Number(config);
  if (!(share >= 0 && share <= 1) || config.trim() === "") {
    throw failure({ tag: "by-policy" }, "bad-config", `fail_after_update is ${config}; expected a number from 0 to 1`);
  }
  const attempt = context.attempt();
  if (unlucky(messageId, attempt, share)) {
    throw failure({ tag: "by-policy" }, "simulated", `attempt ${attempt} fails, as fail_after_update demands`);
  }
}

// The same attempts as in every other language: FNV-1a over id and attempt, then the finalizer of MurmurHash3.
function unlucky(messageId: string, attempt: number, share: number): boolean {
  const wrap = (value: bigint) => BigInt.asUintN(64, value);
  let hash = 0xcbf29ce484222325n;
  for (const byte of [...bytes(messageId), ...[0, 8, 16, 24].map((shift) => (attempt >>> shift) & 255)]) {
    hash = wrap((hash ^ BigInt(byte)) * 0x100000001b3n);
  }
  hash = wrap((hash ^ (hash >> 33n)) * 0xff51afd7ed558ccdn);
  hash = wrap((hash ^ (hash >> 33n)) * 0xc4ceb9fe1a85ec53n);
  hash ^= hash >> 33n;
  return Number(hash % 1_000_000n) < share * 1_000_000;
}

function publish(exchange: string, routingKey: string, json: string): string {
  const nothing = {
    contentEncoding: null, deliveryMode: null, priority: null, correlationId: null, replyTo: null, expiration: null,
    messageId: null, timestamp: null, type: null, userId: null, appId: null,
  };
  const properties = { ...nothing, contentType: "application/json", headers: [] };
  return outbox.publish(exchange, routingKey, properties, bytes(json));
}

// A Failure passes; an error of the host becomes one, by policy.
function failing(attempt: () => void): void {
  try {
    attempt();
  } catch (error) {
    if (error instanceof Error && "payload" in error) {
      const refused = error.payload as { kind: string; message: string };
      const source = "constraint" in refused ? "sql" : "outbox";
      throw failure({ tag: "by-policy" }, `${source}-${refused.kind}`, refused.message);
    }
    throw error;
  }
}

function failure(advice: Advice, code: string, message: string): Failure {
  return { advice, code, message, detail: null };
}

function undecodable(why: string): Failure {
  return failure({ tag: "never" }, "undecodable", `the body is not the JSON that this handler expects: ${why}`);
}

const int = (val: number): Value => ({ tag: "int64", val });
const text = (val: string): Value => ({ tag: "text", val });
const exact = (val: string): Value => ({ tag: "decimal", val });

// QuickJS has no TextDecoder and no TextEncoder.
function utf8(bytes: Uint8Array): string {
  let escaped = "";
  for (const byte of bytes) escaped += `%${byte.toString(16).padStart(2, "0")}`;
  return decodeURIComponent(escaped);
}

function bytes(text: string): Uint8Array {
  const escaped = encodeURIComponent(text);
  return Uint8Array.from(escaped.match(/%..|./g) ?? [], (unit) =>
    unit.length === 3 ? Number.parseInt(unit.slice(1), 16) : unit.charCodeAt(0),
  );
}
