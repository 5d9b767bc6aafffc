// The classic recipe by hand in Node, as well as it can be written there: a lock in Redis by SET NX, a look into the
// flow table, the update and the flow row in one transaction, the lock given back by a compare-and-delete script, and
// then the acknowledgement. It takes orders from the queue until it is killed; any error ends it.
//
//   NODE_PATH=.../node_modules node classic.mjs --amqp URL --redis URL --database URL --workers N [--processes P]

import { fork } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

// Other than import, require heeds NODE_PATH: the packages are installed elsewhere.
const require = createRequire(import.meta.url);
const amqp = require("amqplib");
const { Redis } = require("ioredis");
const { Client } = require("pg");

const QUEUE = "orders";
// Deliveries ahead of each worker.
const PREFETCH = 32;
// The recipe's lease.
const LOCK_MILLIS = 300_000;

const RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

// A name makes them prepared statements, once a connection.
const KNOWN = { name: "known", text: "SELECT 1 FROM message_flow WHERE message_id = $1" };
const UPDATE = {
  name: "update",
  text: "UPDATE stock SET quantity = quantity - $1 WHERE goods_id = $2 AND quantity >= $1",
};
const INSERT = { name: "insert", text: "INSERT INTO message_flow (message_id) VALUES ($1)" };

async function run({ amqp: broker, redis, database, workers }) {
  // A connection for each worker: taking one out of a pool for each message has its price.
  const sessions = Array.from({ length: workers }, () => new Client({ connectionString: database }));
  for (const session of sessions) session.on("error", fail);
  await Promise.all(sessions.map((session) => session.connect()));

  // One write for all commands of a turn of the event loop. No second attempts: a SET NX that did arrive would fail
  // then, and the message would count as someone else's.
  const options = { enableAutoPipelining: true, retryStrategy: null, maxRetriesPerRequest: 0, lazyConnect: true };
  const locks = new Redis(redis, options);
  locks.on("error", fail);
  locks.on("end", () => fail(new Error("Redis ended the connection")));
  locks.defineCommand("release", { numberOfKeys: 1, lua: RELEASE });
  await locks.connect();

  const connection = await amqp.connect(broker, { noDelay: true });
  connection.on("error", fail);
  connection.on("close", () => fail(new Error("the broker ended the connection")));
  const channel = await connection.createChannel();
  channel.on("error", fail);
  await channel.prefetch(PREFETCH * workers);

  const received = new Deliveries();
  await channel.consume(QUEUE, (delivery) => {
    if (delivery === null) fail(new Error("the broker ended the subscription"));
    received.add(delivery);
  });
  await Promise.all(sessions.map((session) => work(received, channel, locks, session)));
}

async function work(received, channel, locks, session) {
  for (;;) {
    const delivery = await received.next();
    const id = delivery.properties.messageId;
    if (typeof id !== "string") throw new Error("a message without an id");
    const goods = goodsOf(delivery.content);
    const locked = await locks.set(id, id, "PX", LOCK_MILLIS, "NX");
    if (locked !== null) {
      await handle(session, id, goods);
      await locks.release(id, id);
    }
    channel.ack(delivery);
  }
}

async function handle(session, id, goods) {
  const known = await session.query({ ...KNOWN, values: [id] });
  if (known.rowCount > 0) return;
  await session.query("BEGIN");
  const updated = await session.query({ ...UPDATE, values: [1, goods] });
  if (updated.rowCount !== 1) throw new Error(`no stock for ${id}`);
  await session.query({ ...INSERT, values: [id] });
  await session.query("COMMIT");
}

function goodsOf(body) {
  const goods = JSON.parse(body.toString()).goods_id;
  if (!Number.isSafeInteger(goods)) throw new Error("a body that is no order");
  return goods;
}

// What has arrived, at most what is prefetched, and the workers that wait for it.
class Deliveries {
  #arrived = [];
  #waiting = [];

  add(delivery) {
    const worker = this.#waiting.shift();
    if (worker) worker(delivery);
    else this.#arrived.push(delivery);
  }

  async next() {
    return this.#arrived.shift() ?? new Promise((resolve) => this.#waiting.push(resolve));
  }
}

// Each process with its own connections. The first one works only if it is the only one.
function spread(processes, args) {
  for (let number = 0; number < processes; number++) {
    const child = fork(fileURLToPath(import.meta.url), [...args, "--processes", "1"]);
    child.on("exit", () => process.exit(1));
  }
}

function fail(error) {
  // Several addresses may have been tried: then the message is empty, and the code is not.
  console.error(`classic.mjs: ${error.message || error.code || error}`);
  process.exit(1);
}

function count(name, text) {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`--${name} is ${text}; expected a number from 1`);
  return value;
}

function options() {
  const text = { type: "string" };
  const known = { amqp: text, redis: text, database: text, workers: text, processes: { ...text, default: "1" } };
  const { values } = parseArgs({ options: known });
  for (const name of Object.keys(known)) {
    if (values[name] === undefined) throw new Error(`--${name} is missing`);
  }
  return { ...values, workers: count("workers", values.workers), processes: count("processes", values.processes) };
}

try {
  // When the first process is gone, however it ended, so is this channel to it.
  process.on("disconnect", () => process.exit(1));
  const { processes, ...settings } = options();
  if (processes > 1) spread(processes, process.argv.slice(2));
  else await run(settings);
} catch (error) {
  fail(error);
}
