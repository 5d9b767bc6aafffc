"""The reduce-stock handler on raw bindings: the same as ../src/lib.rs, in Python.

A handler fails by raising `Err(Failure(...))`. Any other exception is a trap, which is a failed attempt, too.
"""

import json
import re

from componentize_py_types import Err
from wit_world.imports import context, outbox, sql
from wit_world.imports.sql import Value_Int64, Value_Text
from wit_world.imports.types import (
    Advice,
    Advice_ByPolicy,
    Advice_Never,
    Death,
    Failure,
    Message,
    Properties,
)

UNDECODABLE = "undecodable"


class Handler:
    def handle(self, message: Message) -> None:
        goods_id, quantity = read_order(message)
        reduced = execute(
            "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
            [Value_Int64(quantity), Value_Int64(goods_id), Value_Int64(quantity)],
        )
        if reduced.rows_affected == 0:
            raise refusal(goods_id, quantity)
        fail_sometimes(message.id)
        told = {"order": message.id, "goods_id": goods_id, "quantity": quantity}
        publish(context.config("exchange") or "shop", "stock.reduced", told)


class Compensation:
    def compensate(self, message: Message, death: Death) -> None:
        code = death.failure.code if death.failure else None
        # A body that the handler could not read had no effect, so there is nothing to undo.
        if code == UNDECODABLE:
            return
        goods_id, quantity = read_order(message)
        execute(
            "INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES (?, ?, ?, ?)",
            [Value_Text(message.id), Value_Int64(goods_id), Value_Int64(quantity), Value_Text(code or death.reason)],
        )


def read_order(message: Message) -> tuple[int, int]:
    """JSON with the id as a number or a string, or the bare id that the classic producers send."""
    try:
        body = message.body.decode().strip()
    except UnicodeDecodeError as error:
        raise failure(Advice_Never(), UNDECODABLE, f"the body is not UTF-8: {error}")
    if re.fullmatch(r"[0-9]+", body):
        return goods_id_of(body), 1
    try:
        order = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise undecodable(str(error))
    if not isinstance(order, dict):
        raise undecodable("it is no object")
    quantity = order.get("quantity", 1)
    # bool is an int to Python.
    if type(quantity) is not int or not 1 <= quantity < 2**63:
        raise undecodable(f"quantity is {quantity!r}; expected at least 1")
    return goods_id_of(order.get("goods_id")), quantity


def goods_id_of(value: object) -> int:
    goods_id = int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value) else value
    if type(goods_id) is not int or not -(2**63) <= goods_id < 2**63:
        raise undecodable(f"goods_id is {value!r}; expected a 64-bit integer")
    return goods_id


def refusal(goods_id: int, quantity: int) -> Err:
    """Why no row matched: the conditional UPDATE cannot tell, and only this rare case asks."""
    try:
        rows = sql.query("SELECT quantity FROM stock WHERE goods_id = ?", [Value_Int64(goods_id)]).rows
    except Err as error:
        raise host_failure("sql", error)
    if not rows:
        return failure(Advice_Never(), "unknown-goods", f"there are no goods {goods_id}")
    left = rows[0][0].value
    return failure(Advice_Never(), "out-of-stock", f"goods {goods_id}: {quantity} ordered, {left} in stock")


def fail_sometimes(message_id: str) -> None:
    """For demonstrations: this share of attempts fails after the UPDATE, to show that the UPDATE is rolled back."""
    config = context.config("fail_after_update")
    if config is None:
        return
    try:
        share = float(config)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        message = f"the config value fail_after_update is {config!r}; expected a number from 0 to 1"
        raise failure(Advice_ByPolicy(), "bad-config", message)
    attempt = context.attempt()
    if unlucky(message_id, attempt, share):
        raise failure(Advice_ByPolicy(), "simulated", f"attempt {attempt} fails, as fail_after_update demands")


def unlucky(message_id: str, attempt: int, share: float) -> bool:
    """The same attempts as in every other language: FNV-1a over id and attempt, then the finalizer of MurmurHash3."""
    word = 0xFFFF_FFFF_FFFF_FFFF
    value = 0xCBF2_9CE4_8422_2325
    for byte in message_id.encode() + attempt.to_bytes(4, "little"):
        value = (value ^ byte) * 0x100_0000_01B3 & word
    value = (value ^ value >> 33) * 0xFF51_AFD7_ED55_8CCD & word
    value = (value ^ value >> 33) * 0xC4CE_B9FE_1A85_EC53 & word
    value ^= value >> 33
    return value % 1_000_000 < share * 1_000_000


def execute(statement: str, params: list[sql.Value]) -> sql.Executed:
    try:
        return sql.execute(statement, params)
    except Err as error:
        raise host_failure("sql", error)


def publish(exchange: str, routing_key: str, body: object) -> str:
    properties = Properties(
        content_type="application/json",
        content_encoding=None,
        headers=[],
        delivery_mode=None,
        priority=None,
        correlation_id=None,
        reply_to=None,
        expiration=None,
        message_id=None,
        timestamp=None,
        type=None,
        user_id=None,
        app_id=None,
    )
    try:
        return outbox.publish(exchange, routing_key, properties, json.dumps(body, separators=(",", ":")).encode())
    except Err as error:
        raise host_failure("outbox", error)


def host_failure(source: str, error: Err) -> Err:
    """An error of the host, as a failure by policy."""
    kind = error.value.kind.name.lower().replace("_", "-")
    return failure(Advice_ByPolicy(), f"{source}-{kind}", error.value.message)


def failure(advice: Advice, code: str, message: str) -> Err:
    return Err(Failure(advice=advice, code=code, message=message, detail=None))


def undecodable(why: str) -> Err:
    return failure(Advice_Never(), UNDECODABLE, f"the body is not the JSON that this handler expects: {why}")
