"""The bench's handler in Python: one conditional UPDATE for each order, as in every variant."""

import json

from componentize_py_types import Err
from wit_world.imports import sql
from wit_world.imports.sql import Value_Int64
from wit_world.imports.types import Advice, Advice_ByPolicy, Advice_Never, Failure, Message


class Handler:
    def handle(self, message: Message) -> None:
        order = json.loads(message.body)
        goods_id, quantity = Value_Int64(order["goods_id"]), Value_Int64(order["quantity"])
        try:
            reduced = sql.execute(
                "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
                [quantity, goods_id, quantity],
            )
        except Err as error:
            raise failure(Advice_ByPolicy(), "sql", error.value.message)
        if reduced.rows_affected == 0:
            raise failure(Advice_Never(), "out-of-stock", f"no stock for {goods_id.value}")


def failure(advice: Advice, code: str, message: str) -> Err:
    return Err(Failure(advice=advice, code=code, message=message, detail=None))
