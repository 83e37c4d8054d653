// A server of HTTP/2 without TLS that responds as gRPC does. Prints its port, and each stream that its client resets. It echoes each message,
// or responds with a head alone to `/nothing`, and after interim responses to `/interim`.
import { createServer } from "node:http2";

const server = createServer();
server.on("stream", (stream, headers) => {
  if (headers[":path"] === "/nothing") return stream.respond({ ":status": 200, "grpc-status": "5" }, { endStream: true });
  if (headers[":path"] === "/interim") {
    stream.additionalHeaders({ ":status": 100 });
    stream.additionalHeaders({ ":status": 103, link: "</a.css>" });
  }
  const seen = [headers[":authority"], headers[":scheme"], headers.te, headers["content-length"], headers["x-forwarded-proto"]].join();
  stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  let sent;
  stream.on("trailers", (fields) => sent = fields["x-sent"]);
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", "x-seen": seen, ...(sent ? { "x-sent": sent } : {}) }));
  stream.on("error", () => {});
  stream.on("aborted", () => console.log(`reset ${stream.rstCode}`));
  stream.pipe(stream);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
