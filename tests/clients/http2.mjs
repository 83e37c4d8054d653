// A client of a proxy over HTTP/2 with node:http2. Arguments: the proxy's URL, and its authority's certificate or "". Standard input: JSON, a
// list of requests, each with `headers`, what is `sent`, `sendsFirst` if that does not wait for the response, and `resets` if the stream is
// reset after the first data instead of ended. Strings have one character per byte. All go out at once on one
// connection. Prints how each ended as JSON, with the statuses of interim responses and the trailers, among which a response of gRPC that is
// only a head counts, and whether the connection is still open.
import { readFileSync } from "node:fs";
import { connect, constants } from "node:http2";
import process from "node:process";
import { json } from "node:stream/consumers";

const [url, ca] = process.argv.slice(2);
const requests = await json(process.stdin);
const session = connect(url, ca ? { ca: readFileSync(ca) } : {});
await new Promise((resolve, reject) => session.once("remoteSettings", resolve).once("error", reject));

function send({ headers, sent = "", sendsFirst = false, resets = false }) {
  return new Promise((resolve) => {
    const ended = { data: "" };
    const stream = session.request(headers, { endStream: sent === null });
    stream.setEncoding("latin1");
    if (sendsFirst) stream.end(sent, "latin1");
    stream.on("response", (fields, flags) => {
      ended.status = fields[":status"];
      if (fields["grpc-status"] && flags & constants.NGHTTP2_FLAG_END_STREAM) ended.trailers = { "grpc-status": fields["grpc-status"] };
      ended.proxyStatus = fields["proxy-status"];
      if (resets) stream.write(sent, "latin1");
      else if (sent !== null && !sendsFirst) stream.end(sent, "latin1");
    });
    stream.on("headers", (fields) => (ended.interim ??= []).push(fields[":status"]));
    stream.on("trailers", (fields) => ended.trailers = { ...fields });
    stream.on("data", (data) => {
      ended.data += data;
      if (resets) stream.destroy(); // without END_STREAM
    });
    stream.on("error", () => {}); // "close" follows
    stream.on("close", () => resolve({ ...ended, code: stream.rstCode }));
  });
}

const results = await Promise.all(requests.map(send));
console.log(JSON.stringify({ results, isOpen: !session.closed && !session.destroyed }));
session.close();
