// The executable reverse-http-proxy.
import process from "node:process";
import { FAMILY } from "../family.ts";
import { run } from "../shared/cli/run.ts";
import { createNativeNet } from "../shared/net/native.ts";
import { VERSION } from "../shared/version.ts";
import { proxyCommand } from "./command.ts";

await run({ root: { ...proxyCommand(createNativeNet), name: "reverse-http-proxy" }, version: VERSION, family: FAMILY }, process);
