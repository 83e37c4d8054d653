// The stream of events to one client, as server-sent events. A client that reads too slowly is disconnected.
import type { EventHub, EventName } from "../live/events.ts";
import { EVENT_STREAM } from "../http_server.ts";

/** Bytes that may wait for one reader. */
const MAX_PENDING = 256 * 1024;
/** Interval of comments, which show either side that the other is there, in milliseconds. */
const COMMENT_MS = 15_000;

/**
 * Returns `undefined` if too many watch.
 * @param isAllowed asked at each comment; the stream ends when it resolves with `false`
 */
export function eventStream(hub: EventHub, topics: ReadonlySet<EventName>, isAllowed: () => Promise<boolean>): Response | undefined {
  const encoder = new TextEncoder();
  let stop: (() => void) | undefined;
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      const end = () => {
        if (stop === undefined) return;
        stop();
        controller.close();
      };
      const send = (text: string) => {
        controller.enqueue(encoder.encode(text));
        if ((controller.desiredSize ?? 0) <= 0) end();
      };
      const unwatch = hub.watch({ topics, end, send: (name, json) => send(`event: ${name}\ndata: ${json}\n\n`) });
      if (unwatch === undefined) return;
      const comment = async () => {
        if (!await isAllowed()) end();
        else if (stop !== undefined) send(":\n\n");
      };
      const timer = setInterval(() => void comment(), COMMENT_MS); // never rejects
      stop = () => {
        stop = undefined;
        clearInterval(timer);
        unwatch();
      };
      send(":\n\n");
    },
    cancel: () => stop?.(),
  }, { highWaterMark: MAX_PENDING, size: (chunk) => chunk?.length ?? 0 });
  if (stop === undefined) return undefined;
  return new Response(body, { headers: { "Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no" } });
}
