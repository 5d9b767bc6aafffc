"""The classic recipe by hand in Python, as well as it can be written there: a lock in Redis by SET NX, a look into the
flow table, the update and the flow row in one transaction, the lock given back by a compare-and-delete script, and then
the acknowledgement. It takes orders from the queue until it is killed; any error ends it.

    python classic.py --amqp URL --redis URL --database URL --workers N [--processes P]
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from typing import Any

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from psycopg import AsyncConnection, AsyncCursor
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript

QUEUE = "orders"
# Deliveries ahead of each worker.
PREFETCH = 32
# The recipe's lease.
LOCK_MILLIS = 300_000

RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"

KNOWN = "SELECT 1 FROM message_flow WHERE message_id = %s"
UPDATE = "UPDATE stock SET quantity = quantity - %s WHERE goods_id = %s AND quantity >= %s"
INSERT = "INSERT INTO message_flow (message_id) VALUES (%s)"

# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1


async def run(args: argparse.Namespace) -> None:
    # A connection for each worker: taking one out of a pool for each message has its price. Every statement is prepared
    # when its connection first sees it.
    settings = {"autocommit": True, "prepare_threshold": 0}
    sessions = [await AsyncConnection.connect(args.database, **settings) for _ in range(args.workers)]
    # No second attempts: a SET NX that did arrive would fail then, and the message would count as someone else's.
    locks = Redis.from_url(args.redis, max_connections=args.workers, retry=Retry(NoBackoff(), 0))
    release = locks.register_script(RELEASE)

    # Not connect_robust, which would connect again by itself: an error is to be seen.
    connection = await aio_pika.connect(args.amqp)
    channel = await connection.channel(publisher_confirms=False)
    ended = asyncio.get_running_loop().create_future()
    channel.close_callbacks.add(lambda _, error: ended.done() or ended.set_exception(error or EOFError("it ended")))
    await channel.set_qos(prefetch_count=PREFETCH * args.workers)
    received: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    queue = await channel.get_queue(QUEUE, ensure=False)
    await queue.consume(received.put)
    await asyncio.gather(ended, *(work(received, locks, release, session) for session in sessions))


async def work(
    received: asyncio.Queue[AbstractIncomingMessage], locks: Redis, release: AsyncScript, session: AsyncConnection
) -> None:
    cursor = session.cursor()
    while True:
        message = await received.get()
        message_id = message.message_id
        if message_id is None:
            raise ValueError("a message without an id")
        goods = goods_of(message.body)
        if await locks.set(message_id, message_id, nx=True, px=LOCK_MILLIS):
            await handle(cursor, message_id, goods)
            await release(keys=[message_id], args=[message_id])
        await message.ack()


async def handle(cursor: AsyncCursor, message_id: str, goods: int) -> None:
    await cursor.execute(KNOWN, [message_id])
    if await cursor.fetchone() is not None:
        return
    await cursor.execute("BEGIN")
    await cursor.execute(UPDATE, [1, goods, 1])
    if cursor.rowcount != 1:
        raise LookupError(f"no stock for {message_id}")
    await cursor.execute(INSERT, [message_id])
    await cursor.execute("COMMIT")


def goods_of(body: bytes) -> int:
    goods: Any = json.loads(body)["goods_id"]
    if type(goods) is not int:
        raise ValueError("a body that is no order")
    return goods


def spread(args: argparse.Namespace) -> None:
    """Each process with its own connections. The first one only waits, and ends them all when one has ended."""
    first = os.getpid()
    children = []
    for _ in range(args.processes):
        child = os.fork()
        if child == 0:
            die_with(first)
            uvloop.run(run_or_exit(args))
        children.append(child)
    os.wait()
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    sys.exit(1)


def die_with(parent: int) -> None:
    """However the parent ends: it may be killed and have no say."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before.
    if os.getppid() != parent:
        os._exit(1)


async def run_or_exit(args: argparse.Namespace) -> None:
    try:
        await run(args)
    except Exception as error:
        print(f"classic.py: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        # At once: the other workers are not asked to finish.
        os._exit(1)


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--amqp", "--redis", "--database"):
        parser.add_argument(name, required=True, metavar="URL")
    parser.add_argument("--workers", required=True, type=count)
    parser.add_argument("--processes", default=1, type=count)
    args = parser.parse_args()
    if args.processes > 1:
        spread(args)
    uvloop.run(run_or_exit(args))


main()
