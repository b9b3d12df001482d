// Node: ws + ioredis. join: each socket is corked while the messages of one tick are written.
//     node ws_relay.js REDIS_PORT FIRST_JOB JOBS [join]
const http = require("node:http");
const Redis = require("ioredis");
const { WebSocketServer } = require("ws");

const [redisPort, firstJob, jobs] = process.argv.slice(2, 5).map(Number);
const join = process.argv.includes("join");
const sockets = new Map();
const corked = [];

function uncork() {
  for (const socket of corked) {
    socket.isCorked = false;
    socket._socket.uncork();
  }
  corked.length = 0;
}

function forward(channel, data) {
  for (const socket of sockets.get(channel.toString()) ?? []) {
    if (join && !socket.isCorked) {
      if (corked.length === 0) setImmediate(uncork);
      socket.isCorked = true;
      corked.push(socket);
      socket._socket.cork();
    }
    socket.send(data, { binary: false });
  }
}

const server = http.createServer();
const wss = new WebSocketServer({ server, perMessageDeflate: false, backlog: 2048 });
wss.on("connection", (socket, request) => {
  const channel = `ec:{${request.url.split("/")[4]}}:live`;
  if (!sockets.has(channel)) sockets.set(channel, new Set());
  sockets.get(channel).add(socket);
  socket.on("close", () => sockets.get(channel).delete(socket));
  socket.on("error", () => socket.terminate());
});

const redis = new Redis({ port: redisPort, password: process.env.REDIS_PASSWORD });
redis.on("messageBuffer", forward);
redis
  .subscribe(...Array.from({ length: jobs }, (_, index) => `ec:{${firstJob + index}}:live`))
  .then(() => server.listen(0, "127.0.0.1", 2048, () => console.log("ready", server.address().port)));
