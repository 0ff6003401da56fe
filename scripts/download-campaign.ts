/**
 * Kills a download at random places of a transfer from a server that stalls, resets, is busy, lies about ranges and damages a byte, and proves that
 * the file arrives whole, for little more than its size.
 *
 *   npm run test:download -- [--kills 50] [--bytes 200e6] [--seed 1] [--rate 20e6] [--damage broken|silent] [--most 1.2]
 *
 * --damage silent: nothing about the answer with the damaged byte tells that it is bad, so that the search for it may take the whole file.
 * Prints what the download logs, and a line of JSON last; exit 1 when the file is not whole or more than --most times its size was served.
 */
import { parseArgs } from "node:util"
import { runCampaign } from "../test/data/DownloadCampaign.ts"

const { values } = parseArgs({
  options: {
    kills: { type: "string", default: "50" },
    bytes: { type: "string", default: "200e6" },
    seed: { type: "string", default: "1" },
    rate: { type: "string", default: "20e6" },
    damage: { type: "string", default: "broken" },
    most: { type: "string", default: "1.2" }
  }
})

const result = await runCampaign({
  kills: Number(values.kills),
  bytes: Number(values.bytes),
  seed: Number(values.seed),
  rate: Number(values.rate),
  damage: values.damage === "silent" ? "silent" : "broken",
  log: (line) => console.log(line)
})
console.log(JSON.stringify({ campaign: "download", damage: values.damage, seed: Number(values.seed), ...result }))
process.exit(result.whole && result.ratio <= Number(values.most) && result.kills >= Number(values.kills) ? 0 : 1)
