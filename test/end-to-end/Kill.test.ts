/** SIGKILL of workers and of the runner at random moments; `npm run test:kill` does the same with twenty kills of each. */
import { spawn } from "node:child_process"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { root } from "./command-line.ts"

/** Another moment every day, the same one when a failure is looked into on that day. */
const seed = Math.floor(Date.now() / 86_400_000)

describe("killed runs", () => {
  for (const target of ["worker", "runner"]) {
    it(`SIGKILL of the ${target}: the same command completes, and the final weights are bit-identical (seed ${seed})`, async () => {
      const args = [join(root, "scripts/kill-campaign.ts"), "--kills", "2", "--seed", String(seed), "--target", target]
      const child = spawn(process.execPath, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
      let said = ""
      child.stdout.on("data", (chunk: Buffer) => (said += chunk.toString()))
      child.stderr.on("data", (chunk: Buffer) => (said += chunk.toString()))
      const code = await new Promise((resolve) => child.on("close", resolve))
      assert.strictEqual(code, 0, said)
      assert.match(said, /all identical: 2 kills/u)
    }, 300_000)
  }
})
