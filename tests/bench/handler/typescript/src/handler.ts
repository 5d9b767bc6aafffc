// The bench's handler in TypeScript: one conditional UPDATE for each order, as in every variant.

import sql, { type Executed, type SqlError, type Value } from "hapax:handler/sql@0.1.0";
import type { Advice, Failure, Message } from "hapax:handler/types@0.1.0";

export const handler = {
  handle(message: Message): void {
    const { goods_id: goodsId, quantity } = JSON.parse(ascii(message.body)) as { goods_id: number; quantity: number };
    const reduced = execute("UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?", [
      int(quantity),
      int(goodsId),
      int(quantity),
    ]);
    if (reduced.rowsAffected === 0) {
      throw failure({ tag: "never" }, "out-of-stock", `no stock for ${goodsId}`);
    }
  },
};

function execute(statement: string, params: Value[]): Executed {
  try {
    return sql.execute(statement, params);
  } catch (error) {
    const refused = (error as { payload: SqlError }).payload;
    throw failure({ tag: "by-policy" }, `sql-${refused.kind}`, refused.message);
  }
}

function failure(advice: Advice, code: string, message: string): Failure {
  return { advice, code, message, detail: null };
}

const int = (val: number): Value => ({ tag: "int64", val });

// QuickJS has no TextDecoder, and the bench's bodies need none.
const ascii = (bytes: Uint8Array): string => String.fromCharCode(...bytes);
