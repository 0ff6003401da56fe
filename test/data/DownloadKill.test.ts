import { assert, describe, it } from "@effect/vitest"
import { runCampaign } from "./DownloadCampaign.ts"

// The whole of it, 50 kills in 200 MB: npm run test:download
describe("a download that is killed again and again", () => {
  it("arrives whole from a server that stalls, resets, lies and damages a byte, for little more than its size", async () => {
    const logs: Array<string> = []
    const result = await runCampaign({
      kills: 6,
      bytes: 24e6,
      seed: 5,
      rate: 20e6,
      damage: "broken",
      log: (line) => logs.push(line)
    })
    assert.deepInclude(result, { kills: 6, whole: true })
    assert.strictEqual(result.tricks["damage"], 1)
    assert.isAtMost(result.ratio, 1.5, JSON.stringify(result))
    assert.include(logs.join("\n"), "going on from")
  }, 60_000)
})
