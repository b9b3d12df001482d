// Node: socket.io with its Redis adapter; each job is a room, the publisher writes what socket.io's emitter writes.
//     node socket_io_relay.js REDIS_PORT
const http = require("node:http");
const Redis = require("ioredis");
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");

const options = { port: Number(process.argv[2]), password: process.env.REDIS_PASSWORD };
const server = http.createServer();
const io = new Server(server, {
  adapter: createAdapter(new Redis(options), new Redis(options)),
  transports: ["websocket"],
  perMessageDeflate: false,
});
io.on("connection", (socket) => {
  socket.on("join", async (room) => {
    await socket.join(room);
    socket.emit("joined");
  });
});
server.listen(0, "127.0.0.1", 2048, () => console.log("ready", server.address().port));
