/** Saves a checkpoint of step 1, 2, 3, … below the folder that it is given until it is killed; the state of step n is that of the seed n. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect } from "effect"
import { alone } from "../../src/engine/TrainingRanks.ts"
import { openSaver } from "../../src/engine/CheckpointSave.ts"
import { stepsBelow } from "../../src/engine/Checkpoints.ts"
import { progressAt, rankModels, refill } from "./rank-models.ts"

const program = Effect.gen(function* () {
  const root = process.argv[2] ?? "."
  const [rank] = yield* rankModels(1, 0)
  const saver = yield* openSaver(root, rank!.model, alone)
  process.stdout.write("begins\n")
  for (let step = ((yield* stepsBelow(root)).at(-1) ?? 0) + 1; ; step++) {
    refill(rank!.model, step)
    yield* saver.begin(progressAt(step), { before: Effect.void, after: Effect.void })
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
